// Package oidc verifies stateless tokens as a resource server would that has coreos/go-oidc and has never heard of behest. It is a module of its own, so that go-oidc
// never enters ours.
package oidc

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

const audience = "https://files.social.example"

func TestStatelessToken(t *testing.T) {
	mux := http.NewServeMux()
	ts := httptest.NewServer(mux)
	defer ts.Close()
	az, err := authz.New(authz.Config{
		Issuer: ts.URL, JWTAudience: audience, Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []authz.App{{ID: "bookbot", Secret: grant.NewSecret("book-secret"), Actions: []string{"member.read"}, RealNames: true}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"member.read"},
			For: 2 * time.Minute, Uses: grant.Unlimited, Stateless: true}},
	})
	require.NoError(t, err)
	az.Routes(mux.Handle)
	issued, err := az.Emit(t.Context(), grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	require.NoError(t, err)
	require.Len(t, issued, 1)
	token := redeem(t, ts.URL, issued[0].Code.Reveal())

	keys := oidc.NewRemoteKeySet(t.Context(), ts.URL+"/oauth2/jwks")
	rules := oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{"EdDSA"}}
	verified, err := oidc.NewVerifier(ts.URL, keys, &rules).Verify(t.Context(), token)
	require.NoError(t, err)
	require.Equal(t, "zhang-san", verified.Subject)
	require.WithinDuration(t, time.Now().Add(2*time.Minute), verified.Expiry, 30*time.Second)
	var claims struct {
		ClientID string `json:"client_id"`
		Scope    string `json:"scope"`
	}
	require.NoError(t, verified.Claims(&claims))
	require.Equal(t, "bookbot", claims.ClientID)
	require.Equal(t, "group:42/member.read", claims.Scope)

	head, rest, _ := strings.Cut(token, ".")
	for name, check := range map[string]func() (*oidc.IDToken, error){
		"another audience": func() (*oidc.IDToken, error) {
			other := rules
			other.ClientID = ts.URL
			return oidc.NewVerifier(ts.URL, keys, &other).Verify(t.Context(), token)
		},
		"another issuer": func() (*oidc.IDToken, error) {
			return oidc.NewVerifier("https://elsewhere.example", keys, &rules).Verify(t.Context(), token)
		},
		"too late": func() (*oidc.IDToken, error) {
			late := rules
			late.Now = func() time.Time { return time.Now().Add(3 * time.Minute) }
			return oidc.NewVerifier(ts.URL, keys, &late).Verify(t.Context(), token)
		},
		"another header": func() (*oidc.IDToken, error) {
			return oidc.NewVerifier(ts.URL, keys, &rules).Verify(t.Context(), head+"A."+rest)
		},
		"other claims": func() (*oidc.IDToken, error) {
			return oidc.NewVerifier(ts.URL, keys, &rules).Verify(t.Context(), head+".e30"+rest[strings.Index(rest, "."):])
		},
	} {
		_, err := check()
		require.Error(t, err, name)
	}
}

func redeem(t *testing.T, issuer, code string) string {
	t.Helper()
	form := "grant_type=" + authz.GrantTypeOperation + "&code=" + code
	req, err := http.NewRequestWithContext(t.Context(), "POST", issuer+"/oauth2/token", strings.NewReader(form))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("bookbot", "book-secret")
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	var body struct {
		AccessToken string `json:"access_token"`
	}
	require.NoError(t, json.NewDecoder(res.Body).Decode(&body))
	require.True(t, strings.HasPrefix(body.AccessToken, "ey"), "a JWT")
	return body.AccessToken
}
