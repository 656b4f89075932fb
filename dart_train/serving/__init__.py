"""`python -m dart_train serve DIR`: an OpenAI-compatible server for everything that `load` gives.

| file               | what                                                                         |
| ------------------ | ---------------------------------------------------------------------------- |
| limits.py          | the limits of a server, and what it was started with                         |
| errors.py          | refusals, as OpenAI's error JSON                                             |
| chat_request.py    | the body of /v1/chat/completions, checked                                    |
| image_parts.py     | images by data URL, or by file URL inside allowed folders                    |
| preparation.py     | from a checked body to one row of model inputs                               |
| answer_text.py     | tokens to text, as they come; stop texts                                     |
| batching.py        | requests that wait together are one `generate`                               |
| completion.py      | the answer as OpenAI's JSON, complete or as a stream of events               |
| metrics.py         | counters and histograms, in Prometheus' text format                          |
| application.py     | the routes                                                                   |
| uvicorn_compat.py  | the HTTP server, which finishes what it has accepted when it is terminated   |

`transformers serve` runs one request after the other, knows no limits, and its parts are private; used here is only
what transformers documents: `generate` with a `StoppingCriteria`, which receives every token of every row.
"""
