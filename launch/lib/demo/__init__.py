"""The demo: the commands a user would type, one after the other, and the claim they are judged by."""
