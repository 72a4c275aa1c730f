"""Conversations on their way into the model: messages, tools and the chat template that renders them."""
