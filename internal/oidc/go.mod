module github.com/behest-go/behest/internal/oidc

go 1.26.0

require (
	github.com/behest-go/behest v0.0.0
	github.com/coreos/go-oidc/v3 v3.21.0
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/go-jose/go-jose/v4 v4.1.9 // indirect
	github.com/go-oauth2/oauth2/v4 v4.5.4 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/behest-go/behest => ../..
