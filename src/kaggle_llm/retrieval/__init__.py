"""From a query to candidates: lexical, dense, fusion, hard negatives, rerank."""
