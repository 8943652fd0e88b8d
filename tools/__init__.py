"""Scripts behind the make targets; nothing in the product imports them."""
