"""Teachers behind HTTP: rerank services and language models that judge; asked concurrently, paid once."""
