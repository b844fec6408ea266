"""Pictures of groups and labels."""
