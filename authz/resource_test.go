package authz_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/scope"
)

// Who is refused finds, by nothing but the refusal, who gives tokens (RFC 9728 §5).
func TestResourceMetadata(t *testing.T) {
	for _, path := range []string{"", "/chat/one"} {
		var az *authz.Server
		mux := http.NewServeMux()
		web := httptest.NewServer(mux)
		defer web.Close()
		g := newGuarded(t, group42, func(c *authz.Config) { c.Issuer = web.URL + path })
		az = g.Server
		az.Routes(mux.Handle)
		mux.Handle("POST "+path+"/groups/{group}/messages", az.Require("group:{group}/message.write")(http.HandlerFunc(fine)))
		mux.Handle("POST "+path+"/posts", az.RequireFunc(func(*http.Request) (scope.Scope, error) { return scope.MustParse("group:7/message.write"), nil })(http.HandlerFunc(fine)))
		at := web.URL + "/.well-known/oauth-protected-resource" + path // §3.1: before the resource's own path
		for what, try := range map[string][2]string{
			"no token":     {"", "/groups/42/messages"},
			"forged":       {"bhst_x", "/groups/42/messages"},
			"wrong domain": {g.token, "/groups/7/messages"},
			"RequireFunc":  {g.token, "/posts"},
		} {
			req, err := http.NewRequest("POST", web.URL+path+try[1], nil)
			require.NoError(t, err)
			if try[0] != "" {
				req.Header.Set("Authorization", "Bearer "+try[0])
			}
			res, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			found := regexp.MustCompile(`, resource_metadata="([^"]*)"`).FindStringSubmatch(res.Header.Get("WWW-Authenticate"))
			require.NotNil(t, found, "%s: %s", what, res.Header)
			require.Equal(t, at, found[1], what)
		}
		in := httptest.NewRecorder()
		az.In(g.store).Require("group:42/message.write")(http.HandlerFunc(fine)).ServeHTTP(in, httptest.NewRequest("POST", "/", nil))
		require.Contains(t, in.Header().Get("WWW-Authenticate"), at, "also in a transaction")

		res, err := http.Get(at)
		require.NoError(t, err)
		defer res.Body.Close()
		require.Equal(t, "application/json", res.Header.Get("Content-Type"))
		require.Equal(t, "public, max-age=3600", res.Header.Get("Cache-Control"))
		var said map[string]any
		require.NoError(t, json.NewDecoder(res.Body).Decode(&said))
		require.Equal(t, map[string]any{"resource": web.URL + path, "authorization_servers": []any{web.URL + path}, "bearer_methods_supported": []any{"header"},
			"dpop_signing_alg_values_supported": []any{"EdDSA", "Ed25519", "ES256", "RS256"}}, said)

		res, err = http.Get(web.URL + "/.well-known/oauth-authorization-server" + path)
		require.NoError(t, err)
		defer res.Body.Close()
		require.NoError(t, json.NewDecoder(res.Body).Decode(&said))
		require.Equal(t, []any{web.URL + path}, said["protected_resources"], "§4: and the other way round")
	}
}

func TestResourceMetadataEndpoint(t *testing.T) {
	e := &authz.ResourceMetadataEndpoint{Resource: "https://api.example/v1", Issuer: "https://social.example", Name: `The "API"`, Scopes: []string{"group:42/message.write"}}
	for range 2 {
		rec := httptest.NewRecorder()
		e.ServeHTTP(rec, httptest.NewRequest("HEAD", "/", nil))
		require.JSONEq(t, `{"resource":"https://api.example/v1","authorization_servers":["https://social.example"],
			"bearer_methods_supported":["header"],"resource_name":"The \"API\"","scopes_supported":["group:42/message.write"]}`, rec.Body.String())
	}
	rec := httptest.NewRecorder()
	e.ServeHTTP(rec, httptest.NewRequest("POST", "/", strings.NewReader("x")))
	endpointRefused(t, rec, 405, "invalid_request")
	require.Equal(t, "GET, HEAD", rec.Header().Get("Allow"))
}
