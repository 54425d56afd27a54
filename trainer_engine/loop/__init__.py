"""The run itself: put together, trained, ended."""
