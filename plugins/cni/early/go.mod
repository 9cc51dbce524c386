module a.weft/early

go 1.26.0
