"""Multi-task models, masks, and what each task's network computes with."""
