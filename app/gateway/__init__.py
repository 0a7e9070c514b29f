"""What LiteLLM lacks on its pass-through route, mended from outside its package."""
