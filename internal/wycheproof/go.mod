module github.com/behest-go/behest/internal/wycheproof

go 1.26.4

replace github.com/behest-go/behest => ../..

require (
	github.com/behest-go/behest v0.0.0
	github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/go-jose/go-jose/v4 v4.1.9 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
