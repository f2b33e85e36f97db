"""The response cache: answers to equal, or safely equivalent, requests without asking a provider again."""
