"""The gateway: files and batches as in the API of OpenAI, over HTTP."""
