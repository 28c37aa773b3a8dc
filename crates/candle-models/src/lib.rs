//! candle-models.
