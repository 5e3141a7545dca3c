"""The paper as a function: students trained by several recipes at equal budget, judged alike, and what follows."""
