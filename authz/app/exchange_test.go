package app_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/scope"
)

// What is wanted travels as RFC 8693 and RFC 9396 have it, and what is not said is left out.
func TestExchange(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var got map[string]string
	status, answer := 200, `{"access_token":"bhst_child","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer",`+
		`"expires_in":60,"scope":"group:42/message.write","grant_id":"g","uses":2,"domain":"group:42","sub":"u"}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = map[string]string{}
		_ = r.ParseForm()
		for name, values := range r.PostForm {
			got[name] = strings.Join(values, "|")
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(answer))
	}))
	defer srv.Close()
	c := &app.Client{Issuer: srv.URL, ID: "bookbot", Secret: app.NewSecret("12345678"), Now: func() time.Time { return now }}
	set, err := scope.ParseSet("group:42/message.write")
	require.NoError(t, err)
	base := func(more ...string) map[string]string {
		form := map[string]string{"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": "bhst_parent",
			"subject_token_type": "urn:ietf:params:oauth:token-type:access_token"}
		for i := 0; i < len(more); i += 2 {
			form[more[i]] = more[i+1]
		}
		return form
	}
	for _, row := range []struct {
		want app.Token
		form map[string]string
	}{
		{app.Token{}, base()},
		{app.Token{Scope: set, Uses: 2, Expiry: now.Add(time.Minute)}, base("scope", "group:42/message.write", "expires_in", "60",
			"authorization_details", `[{"type":"social_operation","uses":2}]`)},
		{app.Token{Domain: scope.MustDomain("group:42")}, base("authorization_details", `[{"type":"social_operation","domain":"group:42"}]`)},
	} {
		token, err := c.Exchange(context.Background(), app.NewSecret("bhst_parent"), row.want)
		require.NoError(t, err)
		require.Equal(t, row.form, got)
		require.Equal(t, "bhst_child", token.AccessToken.Reveal())
		require.Equal(t, []any{int64(2), "u", now.Add(time.Minute)}, []any{token.Uses, token.Account, token.Expiry})
	}
	_, err = c.Exchange(context.Background(), app.Secret{}, app.Token{})
	require.Error(t, err)
	_, err = c.Exchange(context.Background(), app.NewSecret("x"), app.Token{Expiry: now})
	require.Error(t, err)
	status, answer = 400, `{"error":"invalid_scope"}`
	_, err = c.Exchange(context.Background(), app.NewSecret("bhst_parent"), app.Token{})
	var refused *app.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "invalid_scope", refused.Code)
}
