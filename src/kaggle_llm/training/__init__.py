"""Every kind of fine-tuning: README.md lists the tasks."""
