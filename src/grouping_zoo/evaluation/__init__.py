"""How models are judged: evaluators take a predict function and yield named values, and know no model family."""
