"""Measuring: times, memory, counted operations, and what one decoder layer costs. Shared by compare, bench and plan."""
