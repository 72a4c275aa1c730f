"""OpenAI's responses, without anything kept between two of them."""
