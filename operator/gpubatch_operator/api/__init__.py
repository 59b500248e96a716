"""The API that users see: the pydantic models of `GPUBatchJob` and the CRD generated from them."""
