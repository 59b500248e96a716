"""Files and batches, as OpenAI's API has them: a batch is a job, a file is an object."""
