package goauth2_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/models"
	"github.com/go-oauth2/oauth2/v4/server"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/authz/goauth2"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

const exchange = "urn:ietf:params:oauth:grant-type:token-exchange"

// A town is a go-oauth2 server and Behest in one program. web is a client of go-oauth2 alone, bot an app of Behest
// alone, both is both.
type town struct {
	*site
	az    *authztest.Server
	token http.Handler
}

func newTown(t *testing.T, prepare ...func(*site)) *town {
	az := authztest.New(t, authz.Config{
		Apps: []authz.App{
			{ID: "bot", Actions: []string{"message.write"}},
			{ID: "both", Secret: grant.NewSecret("both-secret"), Actions: []string{"message.write", "message.read"}},
		},
		Triggers: []grant.Trigger{{App: "both", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: time.Minute, Uses: 2, Deliver: grant.Poll}},
	})
	s := newSite(t)
	s.clients["both"] = &models.Client{ID: "both", Secret: "both-secret", Domain: "https://both.example/cb"}
	for _, f := range prepare {
		f(s)
	}
	return &town{s, az, goauth2.Wrap(s.Server, az.Server)}
}

// mention lets both act for zhang-san in group 42, and returns the code for it.
func (w *town) mention(id string) string {
	w.t.Helper()
	issued := w.az.MustEmit(grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "both"})
	return issued[0].Code.Reveal()
}

func (w *town) post(authorization string, pairs ...string) answer {
	w.t.Helper()
	return serve(w.t, w.token, tokenRequest(authorization, form(pairs...).Encode()))
}

var both = basic("both", "both-secret")

// The wrapped endpoint has the grants of both, each with its own answers.
func TestWrapAddsGrants(t *testing.T) {
	for name, prepare := range map[string]func(*site){"plain": func(*site) {}, "hardened": (*site).harden} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, prepare)
			a := w.post(both, "grant_type", authz.GrantTypeOperation, "code", w.mention("m1"))
			require.Equal(t, 200, a.status, a.raw)
			require.Equal(t, "group:42/message.write", a.str("scope"))
			require.True(t, strings.HasPrefix(a.str("access_token"), "bhst_"))

			a = w.post(both, "grant_type", "client_credentials", "scope", "read")
			require.Equal(t, 200, a.status, "with the same credentials")
			require.Equal(t, "read", a.str("scope"), "their hooks decide")
			a = w.post(web, "grant_type", "authorization_code", "code", w.code("read"), "redirect_uri", callback, "code_verifier", codeProof)
			require.Equal(t, 200, a.status)
			require.Equal(t, 200, w.post(web, "grant_type", "refresh_token", "refresh_token", a.str("refresh_token")).status)

			require.Equal(t, "unsupported_grant_type", w.post(both, "grant_type", "urn:example:other").str("error"))
			require.Equal(t, "unsupported_grant_type", w.post(both).str("error"))
		})
	}
}

// Each side authenticates its own clients.
func TestWrapClients(t *testing.T) {
	w := newTown(t, (*site).harden)
	for _, gt := range []string{authz.GrantTypeOperation, exchange} {
		a := w.post(web, "grant_type", gt, "code", w.mention("of "+gt))
		w.refused(a, 401, "invalid_client")
		require.Contains(t, a.header.Get("WWW-Authenticate"), `realm="behest"`)
	}
	a := w.post(basic("bot", "secret-of-bot"), "grant_type", "client_credentials")
	w.refused(a, 401, "invalid_client")
	require.Contains(t, a.header.Get("WWW-Authenticate"), `realm="oauth2"`)
	// Suspended at Behest, an app loses Behest's grants.
	code := w.mention("m1")
	require.NoError(t, w.az.Change(t.Context(), authz.Change{SuspendApps: []string{"both"}}))
	w.refused(w.post(both, "grant_type", authz.GrantTypeOperation, "code", code), 401, "invalid_client")
	require.Equal(t, 200, w.post(both, "grant_type", "client_credentials").status)
}

// What is theirs arrives as it came: the body unread, the hooks in their order.
func TestWrapLeavesTheRequestAlone(t *testing.T) {
	w := newTown(t)
	var seen string
	w.ClientInfoHandler = func(r *http.Request) (string, string, error) {
		seen = r.PostForm.Encode()
		return server.ClientFormHandler(r)
	}
	ask := func(r *http.Request) answer { return serve(t, w.token, r) }
	credentials := "client_id=web&client_secret=" + webSecret

	body := "grant_type=client_credentials&" + credentials
	require.Equal(t, 200, ask(tokenRequest("", body)).status)
	require.Equal(t, "client_id=web&client_secret="+webSecret+"&grant_type=client_credentials", seen)

	large := body + "&padding=" + strings.Repeat("x", 300<<10)
	require.Equal(t, 200, ask(tokenRequest("", large)).status)
	require.Contains(t, seen, strings.Repeat("x", 300<<10))

	parsed := tokenRequest("", body)
	require.NoError(t, parsed.ParseForm())
	require.Equal(t, 200, ask(parsed).status)
	require.Equal(t, "client_id=web&client_secret="+webSecret+"&grant_type=client_credentials", seen)

	multipart := tokenRequest("", "--b\r\nContent-Disposition: form-data; name=\"grant_type\"\r\n\r\nclient_credentials\r\n"+
		"--b\r\nContent-Disposition: form-data; name=\"client_id\"\r\n\r\nweb\r\n"+
		"--b\r\nContent-Disposition: form-data; name=\"client_secret\"\r\n\r\n"+webSecret+"\r\n--b--\r\n")
	multipart.Header.Set("Content-Type", "multipart/form-data; boundary=b")
	require.Equal(t, 200, ask(multipart).status, "plain go-oauth2 takes it")

	get := httptest.NewRequest(http.MethodGet, "/token?grant_type="+authz.GrantTypeOperation, nil)
	require.Equal(t, "invalid_request", ask(get).str("error"), "GET is theirs to refuse")

	broken := tokenRequest("", "")
	broken.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), iotest.ErrReader(errors.New("cut"))))
	require.Equal(t, "unsupported_grant_type", ask(broken).str("error"), "as go-oauth2 has it")

	w.ResponseTokenHandler = func(http.ResponseWriter, map[string]any, http.Header, ...int) error { return errors.New("no pen") }
	a := ask(tokenRequest("", body))
	require.Equal(t, 500, a.status)
	require.NotContains(t, a.raw, "no pen")
}

// What is ours is judged by Behest's endpoint, as strictly as there.
func TestWrapStrict(t *testing.T) {
	w := newTown(t)
	code := w.mention("m1")
	ours := "grant_type=" + authz.GrantTypeOperation + "&code=" + code
	ask := func(change func(*http.Request), body string) answer {
		r := tokenRequest(both, body)
		change(r)
		return serve(t, w.token, r)
	}
	nothing := func(*http.Request) {}
	w.refused(ask(nothing, ours+"&grant_type=client_credentials"), 400, "invalid_request")
	w.refused(ask(nothing, "grant_type=client_credentials&"+ours), 400, "invalid_request")
	w.refused(ask(nothing, ours+"&code=x"), 400, "invalid_request")
	w.refused(ask(nothing, ours+"&x=%zz"), 400, "invalid_request")
	w.refused(ask(nothing, ours+"&padding="+strings.Repeat("x", 64<<10)), 400, "invalid_request")
	w.refused(ask(func(r *http.Request) { r.URL.RawQuery = "code=x" }, ours), 400, "invalid_request")
	w.refused(ask(func(r *http.Request) { r.Header.Add("Authorization", web) }, ours), 400, "invalid_request")
	parsed := ask(func(r *http.Request) { require.NoError(t, r.ParseForm()) }, ours+"&code=x")
	w.refused(parsed, 400, "invalid_request")
	require.Equal(t, 200, ask(func(r *http.Request) { require.NoError(t, r.ParseForm()) }, ours).status, "and the code is still good")
}

// A code of one side is none of the other's.
func TestCodesDoNotCross(t *testing.T) {
	for name, prepare := range map[string]func(*site){"plain": func(*site) {}, "hardened": (*site).harden} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, prepare)
			ours, theirs := w.mention("m1"), w.codeFor("both", "https://both.example/cb", "read")
			a := w.post(both, "grant_type", "authorization_code", "code", ours, "redirect_uri", "https://both.example/cb", "code_verifier", codeProof)
			require.Equal(t, "invalid_grant", a.str("error"))
			w.refused(w.post(both, "grant_type", authz.GrantTypeOperation, "code", theirs), 400, "invalid_grant")
			// The client comes first.
			a = w.post(basic("both", "guessed"), "grant_type", "authorization_code", "code", ours, "redirect_uri", "https://both.example/cb", "code_verifier", codeProof)
			require.Equal(t, "invalid_client", a.str("error"))
			// And both are as they were.
			a = w.post(both, "grant_type", authz.GrantTypeOperation, "code", ours)
			require.Equal(t, 200, a.status)
			token := a.str("access_token")
			require.Equal(t, "invalid_grant", w.post(both, "grant_type", "refresh_token", "refresh_token", token).str("error"))
			a = w.post(both, "grant_type", "authorization_code", "code", theirs, "redirect_uri", "https://both.example/cb", "code_verifier", codeProof)
			require.Equal(t, 200, a.status)
		})
	}
}

// gullible is a token store that finds whatever it is asked for: a user's token for everything.
type gullible struct {
	*shelf
	asked []string
}

func (g *gullible) GetByAccess(_ context.Context, access string) (oauth2.TokenInfo, error) {
	g.asked = append(g.asked, access)
	return &models.Token{ClientID: "web", UserID: "root", Scope: "everything", Access: access, AccessCreateAt: time.Now()}, nil
}

func (g *gullible) GetByRefresh(_ context.Context, refresh string) (oauth2.TokenInfo, error) {
	g.asked = append(g.asked, refresh)
	return &models.Token{ClientID: "web", UserID: "root", Refresh: refresh, RefreshCreateAt: time.Now()}, nil
}

// A delegation token is no token to go-oauth2's handlers, whoever holds it and whatever their stores say, unless Require
// and Show have let this very request pass with it.
func TestDelegationFailsClosed(t *testing.T) {
	w := newTown(t)
	believer := &gullible{shelf: w.shelf}
	w.manager.MapTokenStorage(believer)
	var token *http.Request
	look := func(r *http.Request) (oauth2.TokenInfo, error) {
		token = r
		return w.ValidationBearerToken(r)
	}
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		ti, err := look(r)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(rw).Encode(ti)
	})
	required := w.az.Require("group:{group}/message.write")
	w.az.Handle("POST /plain/groups/{group}", handler)
	w.az.Handle("POST /show/groups/{group}", goauth2.Show(handler))
	w.az.Handle("POST /required/groups/{group}", required(handler))
	w.az.Handle("POST /shown/groups/{group}", required(goauth2.Show(handler)))

	good := w.az.Token("both", "zhang-san", "group:42")
	used := w.az.Redeem(w.az.MustEmit(grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "both"})[0])
	for range 2 {
		require.Equal(t, 200, w.az.Do(used, "POST", "/shown/groups/42", "x").Status, "so also the last use")
	}
	code := w.mention("m2")
	for _, secret := range []string{good, used, code, good + "x", "bhst_", "bhst_" + strings.Repeat("A", 300), "bhat_made-up"} {
		for _, path := range []string{"/plain/groups/42", "/show/groups/42"} {
			a := w.az.Do(secret, "POST", path, "x")
			require.Equal(t, 403, a.Status, "%s %.10s", path, secret)
			require.Contains(t, a.Body, "invalid access token")
		}
		for _, path := range []string{"/required/groups/42", "/shown/groups/42"} {
			a := w.az.Do(secret, "POST", path, "x")
			switch {
			case secret != good:
				require.Equal(t, 401, a.Status)
			case path == "/required/groups/42":
				require.Equal(t, 403, a.Status, "Require alone shows nothing")
				require.Contains(t, a.Body, "invalid access token")
			default:
				require.Equal(t, 200, a.Status)
			}
		}
		for _, ask := range []func() error{
			func() error { _, err := w.Manager.LoadAccessToken(t.Context(), secret); return err },
			func() error { _, err := w.Manager.LoadRefreshToken(t.Context(), secret); return err },
			func() error { return w.Manager.RemoveAccessToken(t.Context(), secret) },
			func() error { return w.Manager.RemoveRefreshToken(t.Context(), secret) },
			func() error {
				_, err := w.Manager.RefreshAccessToken(t.Context(), &oauth2.TokenGenerateRequest{ClientID: "web", Refresh: secret})
				return err
			},
		} {
			require.Contains(t, []error{oautherrors.ErrInvalidAccessToken, oautherrors.ErrInvalidRefreshToken}, ask())
		}
	}
	require.Equal(t, 401, w.az.Do("users-own", "POST", "/shown/groups/42", "x").Status, "Require takes delegation tokens only")
	require.Equal(t, 200, w.az.Do("users-own", "POST", "/plain/groups/42", "x").Status)
	require.Equal(t, []string{"users-own"}, believer.asked, "no token of Behest was ever told to their store")

	// Within a request that was let through, another token is still none.
	require.Equal(t, 200, w.az.Do(good, "POST", "/shown/groups/42", "x").Status)
	for _, other := range []string{used, code, w.az.Token("both", "zhang-san", "group:42")} {
		_, err := w.Manager.LoadAccessToken(token.Context(), other)
		require.Equal(t, oautherrors.ErrInvalidAccessToken, err)
	}
	w.az.Clock.Advance(2 * time.Hour)
	for _, path := range []string{"/plain/groups/42", "/required/groups/42", "/shown/groups/42"} {
		require.NotEqual(t, 200, w.az.Do(good, "POST", path, "x").Status, "expired")
	}
}

// What is shown is this use of the token, and looking at it spends nothing.
func TestShow(t *testing.T) {
	for name, prepare := range map[string]func(*site){"plain": func(*site) {}, "hardened": (*site).harden} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, prepare)
			var infos []oauth2.TokenInfo
			handler := goauth2.Show(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				for range 3 {
					ti, err := w.ValidationBearerToken(r)
					require.NoError(t, err)
					infos = append(infos, ti)
				}
			}))
			w.az.Handle("POST /groups/{group}", w.az.Require("group:{group}/message.read")(handler))
			w.az.Handle("GET /users-own", handler)
			token := w.az.Token("both", "zhang-san", "group:42")
			before, err := w.az.Engine().Inspect(t.Context(), grant.NewSecret(token))
			require.NoError(t, err)
			w.az.Clock.Advance(time.Minute)
			require.Equal(t, 200, w.az.Do(token, "POST", "/groups/42", "x").Status)
			after, err := w.az.Engine().Inspect(t.Context(), grant.NewSecret(token))
			require.NoError(t, err)
			require.Equal(t, before.Left-1, after.Left, "Require has spent one, and nothing else has")
			require.Len(t, infos, 3)
			for _, ti := range infos {
				require.Equal(t, "both", ti.GetClientID())
				require.Equal(t, "zhang-san", ti.GetUserID())
				require.Equal(t, "group:42/message.read", ti.GetScope(), "not all that was granted")
				require.Equal(t, token, ti.GetAccess())
				require.Equal(t, before.NotAfter, ti.GetAccessCreateAt().Add(ti.GetAccessExpiresIn()))
				require.Empty(t, ti.GetRefresh())
			}
			access, _ := w.signIn("read")
			infos = nil
			require.Equal(t, 200, w.az.Do(access, "GET", "/users-own", "").Status, "a user's own token is what it was")
			require.Equal(t, "zhang-san", infos[0].GetUserID())
			require.Equal(t, "read", infos[0].GetScope())
		})
	}
}

// A JWT, which a Remote takes for a stateless trigger, is shown like any delegation, and unknown to go-oauth2 otherwise.
func TestShowJWT(t *testing.T) {
	w := newTown(t, (*site).harden)
	const jwt = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
	d := &authz.Delegation{Account: "zhang-san", App: "both", Scope: scope.MustParse("group:42/message.write")}
	var ti oauth2.TokenInfo
	var err error
	handler := goauth2.Show(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ti, err = w.ValidationBearerToken(r) }))
	for _, delegated := range []bool{true, false} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Authorization", "Bearer "+jwt)
		if delegated {
			r = r.WithContext(authz.NewContext(r.Context(), d))
		}
		handler.ServeHTTP(httptest.NewRecorder(), r)
		if delegated {
			require.NoError(t, err)
			require.Equal(t, "zhang-san", ti.GetUserID())
			require.Equal(t, "group:42/message.write", ti.GetScope())
		} else {
			require.Equal(t, oautherrors.ErrInvalidAccessToken, err)
		}
	}
}

// Harden and Wrap can be called in either order, and Wrap more than once.
func TestOrder(t *testing.T) {
	w := newTown(t)
	w.harden()
	goauth2.Wrap(w.Server, w.az.Server)
	w.refused(w.post(basic("nobody", "x"), "grant_type", "client_credentials"), 401, "invalid_client")
	require.Equal(t, 200, w.post(both, "grant_type", authz.GrantTypeOperation, "code", w.mention("m1")).status)
	_, err := w.Manager.LoadAccessToken(t.Context(), "bhst_x")
	require.Equal(t, oautherrors.ErrInvalidAccessToken, err)
}
