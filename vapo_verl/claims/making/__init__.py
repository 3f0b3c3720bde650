"""Claims of one image: what is asked, what is read, what is kept, how it is voted on."""
