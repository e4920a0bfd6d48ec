"""Agents that are programs of their own: they talk to an endpoint like OpenAI's, and we keep the tokens."""
