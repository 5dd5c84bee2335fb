"""Operations, and which executor runs them."""
