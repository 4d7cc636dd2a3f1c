package authz

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"

	"github.com/behest-go/behest/internal/jose"
)

// A MetadataEndpoint answers GET /.well-known/oauth-authorization-server (RFC 8414). Besides the members of the
// standard it tells behest_grants_endpoint, where apps poll, and behest_use_endpoint, where resource servers spend. Set the fields before the first request: the answer is
// made once.
type MetadataEndpoint struct {
	Issuer    string   // required
	Prefix    string   // of the endpoints, below the issuer; empty: "/oauth2"
	Scopes    []string // scopes_supported; empty: left out
	Resources []string // protected_resources (RFC 9728 §4); empty: left out
	JWKS      bool     // jwks_uri: there is a JWTSigner at /jwks
	SignIn    bool     // there is an AuthorizationEndpoint

	once sync.Once
	body []byte
}

type metadata struct {
	Issuer                string   `json:"issuer"`
	Authorization         string   `json:"authorization_endpoint,omitempty"`
	TokenEndpoint         string   `json:"token_endpoint"`
	IntrospectionEndpoint string   `json:"introspection_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	GrantsEndpoint        string   `json:"behest_grants_endpoint"`
	UseEndpoint           string   `json:"behest_use_endpoint"`
	GrantTypes            []string `json:"grant_types_supported"`
	ResponseTypes         []string `json:"response_types_supported"`
	ResponseModes         []string `json:"response_modes_supported,omitempty"`
	CodeChallenges        []string `json:"code_challenge_methods_supported,omitempty"`
	IssParameter          bool     `json:"authorization_response_iss_parameter_supported,omitempty"`
	TokenAuth             []string `json:"token_endpoint_auth_methods_supported"`
	IntrospectionAuth     []string `json:"introspection_endpoint_auth_methods_supported"`
	RevocationAuth        []string `json:"revocation_endpoint_auth_methods_supported"`
	TokenAlgs             []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	IntrospectionAlgs     []string `json:"introspection_endpoint_auth_signing_alg_values_supported"`
	RevocationAlgs        []string `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	DPoPAlgs              []string `json:"dpop_signing_alg_values_supported"`
	Scopes                []string `json:"scopes_supported,omitempty"`
	Resources             []string `json:"protected_resources,omitempty"`
	JWKS                  string   `json:"jwks_uri,omitempty"`
	DetailTypes           []string `json:"authorization_details_types_supported"`
}

// ServeHTTP implements [http.Handler].
func (m *MetadataEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	m.once.Do(m.make)
	writePublic(w, m.body)
}

// writePublic answers with JSON that is no secret and may be an hour old.
func writePublic(w http.ResponseWriter, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age=3600")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // an error means that nobody is there any more
}

func (m *MetadataEndpoint) make() {
	prefix := m.Prefix
	if prefix == "" {
		prefix = "/oauth2"
	}
	base, auth, jwks := m.Issuer+prefix, []string{secretBasic, secretPost, privateKey}, ""
	if m.JWKS {
		jwks = base + "/jwks"
	}
	doc := metadata{
		Issuer: m.Issuer, TokenEndpoint: base + "/token", IntrospectionEndpoint: base + "/introspect", RevocationEndpoint: base + "/revoke",
		GrantsEndpoint: base + "/grants", UseEndpoint: base + "/use", GrantTypes: []string{GrantTypeOperation, grantTypeExchange, "client_credentials"}, ResponseTypes: []string{},
		TokenAuth: auth, IntrospectionAuth: auth, RevocationAuth: auth,
		TokenAlgs: jose.Algorithms(), IntrospectionAlgs: jose.Algorithms(), RevocationAlgs: jose.Algorithms(), DPoPAlgs: jose.Algorithms(), Scopes: m.Scopes, Resources: m.Resources, JWKS: jwks, DetailTypes: []string{detailType},
	}
	if m.SignIn {
		doc.Authorization, doc.ResponseTypes, doc.ResponseModes = base+"/authorize", []string{"code"}, []string{"query"}
		doc.GrantTypes = append(doc.GrantTypes, "authorization_code", "refresh_token")
		doc.TokenAuth, doc.RevocationAuth = append(slices.Clone(auth), noAuth), append(slices.Clone(auth), noAuth)
		doc.CodeChallenges, doc.IssParameter = []string{"S256"}, true // RFC 7636, RFC 9207
		doc.Scopes = append([]string{scopeProfile}, m.Scopes...)
	}
	m.body, _ = json.Marshal(doc) // strings cannot fail
}
