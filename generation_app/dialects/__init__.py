"""Other programs' APIs over the same jobs: AUTOMATIC1111's and OpenAI's.

They translate requests, answers and errors and nothing else: what may be asked, by whom and how
often is decided in ``services``, exactly as for `/api/generate/`.
"""
