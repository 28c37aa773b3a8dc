//! openai-api.
