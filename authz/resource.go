package authz

import (
	"encoding/json"
	"net/http"
	"net/url"
	"sync"

	"github.com/behest-go/behest/internal/jose"
)

// resourceMetadata is where a ResourceMetadataEndpoint stands: before the resource's path (RFC 9728 §3.1).
const resourceMetadata = "/.well-known/oauth-protected-resource"

// wellKnown puts the well-known part between a URL's host and its path (RFC 8615 §3).
func wellKnown(u *url.URL, part string) string { return u.Scheme + "://" + u.Host + part + u.Path }

// A ResourceMetadataEndpoint answers GET /.well-known/oauth-protected-resource (RFC 9728): where a client that was
// refused by Require finds who gives tokens. The resource is the whole API, not one of its URLs. A Server has one for
// its own API, and so has a [Remote]. Set the fields before the first request: the answer is made once.
type ResourceMetadataEndpoint struct {
	Resource string   // the API's own URL; required
	Issuer   string   // of the authorization server; required
	Name     string   // resource_name, for people; empty: left out
	DPoP     bool     // takes tokens that are bound to a key: dpop_signing_alg_values_supported
	Scopes   []string // scopes_supported; empty: left out: what a token is for is not the client's choice

	once sync.Once
	body []byte
}

// ServeHTTP implements [http.Handler].
func (e *ResourceMetadataEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	e.once.Do(func() {
		var algs []string
		if e.DPoP {
			algs = jose.Algorithms()
		}
		e.body, _ = json.Marshal(struct { // strings cannot fail
			Resource string   `json:"resource"`
			Servers  []string `json:"authorization_servers"`
			Scopes   []string `json:"scopes_supported,omitempty"`
			Methods  []string `json:"bearer_methods_supported"`
			Name     string   `json:"resource_name,omitempty"`
			DPoP     []string `json:"dpop_signing_alg_values_supported,omitempty"`
		}{e.Resource, []string{e.Issuer}, e.Scopes, []string{"header"}, e.Name, algs})
	})
	writePublic(w, e.body)
}
