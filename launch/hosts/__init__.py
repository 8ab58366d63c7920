"""A job on several machines: reached by ssh or gcloud, set up, started, followed, stopped."""
