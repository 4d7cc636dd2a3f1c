package authz_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
)

// The standard grants run on go-oauth2's server over a manager and a store of ours. Each of these is a hole of its own
// manager, store or server (v4.5.4), which must not be here.

// Its RefreshAccessToken asks neither for the client nor whose the token is, and takes any scope.
func TestHoleRefreshAuthenticatesNobody(t *testing.T) {
	w := newEndpointWorld(t)
	_, refresh := w.signedIn("zhang-san")
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}
	endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", form.Encode())), 401, "invalid_client")
	endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", form.Encode()+"&client_id=probe")), 401, "invalid_client")
	stranger := endpointRefused(t, w.post("/oauth2/token", "other", "other-secret", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"bhsr_x"}}), 400, "invalid_grant")
	require.Equal(t, stranger, endpointRefused(t, w.post("/oauth2/token", "other", "other-secret", form), 400, "invalid_grant"))
	endpointRefused(t, w.refresh(refresh, "scope", "profile"), 400, "invalid_scope")
	require.Equal(t, http.StatusOK, w.refresh(refresh).Code, "it has survived all that")
}

// A slowStore takes its time between what is read and what is written.
type slowStore struct{ store.Store }

func (s slowStore) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	found, err := s.Store.Get(ctx, kind, ids...)
	<-time.After(time.Millisecond)
	return found, err
}

// Its codes and refresh tokens are read and then deleted: with a store that takes 1 ms, 8 of 8 at once succeed.
func TestHoleCodesAndRefreshTokensAreReadAndThenDeleted(t *testing.T) {
	node := signInNode(t, slowStore{store.NewMemory()}, time.Now)
	once := func(f func() *httptest.ResponseRecorder) (access, refresh string) {
		var wg sync.WaitGroup
		answers := make([]*httptest.ResponseRecorder, 8)
		for i := range answers {
			wg.Go(func() { answers[i] = f() })
		}
		wg.Wait()
		won := 0
		for _, rec := range answers {
			if rec.Code == http.StatusOK {
				access, refresh = node.tokens(rec)
				won++
			}
		}
		require.Equal(t, 1, won)
		return access, refresh
	}
	code := node.consent("zhang-san")
	_, refresh := once(func() *httptest.ResponseRecorder { return node.exchange(code) })
	access, _ := once(func() *httptest.ResponseRecorder { return node.refresh(refresh) })
	require.True(t, node.live(access))
}

// Its JWTs of one second are one string, and one overwrites the other.
func TestHoleTokensOfOneSecondAreTheSame(t *testing.T) {
	w := newEndpointWorld(t) // whose clock stands still
	seen := map[string]bool{}
	for range 8 {
		access, refresh := w.signedIn("zhang-san")
		require.False(t, seen[access] || seen[refresh])
		seen[access], seen[refresh] = true, true
	}
	for token := range seen {
		require.Equal(t, strings.HasPrefix(token, "bhsa_"), w.live(token))
	}
}

// It redirects errors to whatever redirect_uri says, and takes any host that ends like the registered one.
func TestHoleErrorsLeadToAnUnvalidatedRedirectURI(t *testing.T) {
	w := newEndpointWorld(t)
	for _, uri := range []string{"https://evil.example/", "https://evilprobe.example/cb", "https://x.probe.example/cb", "https://probe.example/cb/../x", "//evil.example", "javascript:x"} {
		for _, change := range [][]string{{"response_type", "token"}, {"code_challenge", "-"}, {"scope", "x"}, {"client_id", "nobody"}, {"prompt", "none"}, nil} {
			query := signInQuery(append(change, "redirect_uri", uri)...).Encode()
			for _, account := range []string{"", "zhang-san"} {
				signInPage(t, w.authorize(account, query), 400)
				signInPage(t, w.answer(account, query, url.Values{"answer": {"yes"}}), 400)
			}
		}
	}
}

// It asks for the user's password before it knows the client, and whether that may use one at all.
func TestHolePasswordIsJudgedBeforeTheClient(t *testing.T) {
	w := newEndpointWorld(t)
	form := url.Values{"grant_type": {"password"}, "username": {"zhang-san"}, "password": {"x"}}
	endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", form.Encode())), 401, "invalid_client")
	endpointRefused(t, w.post("/oauth2/token", "probe", endpointSecret, form), 400, "unsupported_grant_type")
}

// By default it offers implicit and password, PKCE is as one likes, "plain" is what it is if nobody says, and any scope goes.
func TestHoleInsecureDefaults(t *testing.T) {
	w := newEndpointWorld(t)
	for code, changes := range map[string][][]string{
		"unsupported_response_type": {{"response_type", "token"}},
		"invalid_request":           {{"code_challenge", "-"}, {"code_challenge_method", "-"}, {"code_challenge_method", "plain"}, {"code_challenge", "-", "code_challenge_method", "-"}},
		"invalid_scope":             {{"scope", "admin"}, {"scope", "group:42/message.write"}},
	} {
		for _, change := range changes {
			require.Equal(t, code, signInReturn(t, w.authorize("zhang-san", signInQuery(change...).Encode()), signInRedirect).Get("error"))
		}
	}
	endpointRefused(t, w.exchange(w.consent("zhang-san"), "code_verifier", signInChallenge), 400, "invalid_grant")
}

// It takes secrets, codes and tokens from the query, and of repeated parameters the first.
func TestHoleParametersInTheQueryOrRepeated(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.consent("zhang-san")
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {signInRedirect}, "code_verifier": {signInVerifier}}
	auth := endpointBasic("probe", endpointSecret)
	for name := range form {
		rest := url.Values{}
		for k, v := range form {
			if k != name {
				rest[k] = v
			}
		}
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token?"+url.Values{name: form[name]}.Encode(), rest.Encode(), "Authorization", auth)), 400, "invalid_request")
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", form.Encode()+"&"+name+"=x", "Authorization", auth)), 400, "invalid_request")
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", form.Encode()+"&"+url.Values{name: form[name]}.Encode(), "Authorization", auth)), 400, "invalid_request")
	}
	endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token?client_id=probe&client_secret="+url.QueryEscape(endpointSecret), form.Encode())), 400, "invalid_request")
	require.Equal(t, http.StatusOK, w.exchange(code).Code)
}

// Unknown clients, expired tokens and wrapped errors are a 500, and an error that cannot be the key of a map is a panic.
func TestHole500ForWhatClientsSend(t *testing.T) {
	w := newEndpointWorld(t)
	code, late := w.consent("zhang-san"), w.consent("zhang-san")
	_, refresh := w.signedIn("zhang-san")
	w.advance(59 * time.Second)
	rec := w.exchangeAs("nobody", "x", code)
	endpointRefused(t, rec, 401, "invalid_client")
	require.NotEmpty(t, rec.Header().Get("WWW-Authenticate"))
	require.Equal(t, http.StatusOK, w.exchange(code).Code)
	w.advance(time.Second)
	endpointRefused(t, w.exchange(late), 400, "invalid_grant")
	w.advance(31 * 24 * time.Hour)
	endpointRefused(t, w.refresh(refresh), 400, "invalid_grant")
	endpointRefused(t, w.refresh("x"), 400, "invalid_grant")

	_, refresh = w.signedIn("zhang-san")
	code = w.consent("zhang-san")
	var broken error = endpointUnhashable{"holes"}
	w.store.failGet.Store(&broken)
	endpointRefused(t, w.exchange(code), 503, "temporarily_unavailable")
	endpointRefused(t, w.refresh(refresh), 503, "temporarily_unavailable")
	w.store.failGet.Store(nil)
	w.store.failApply.Store(&broken)
	endpointRefused(t, w.exchange(code), 503, "temporarily_unavailable")
	endpointRefused(t, w.refresh(refresh), 503, "temporarily_unavailable")
	endpointRefused(t, w.post("/oauth2/token", "probe", endpointSecret, url.Values{"grant_type": {"client_credentials"}}), 503, "temporarily_unavailable")
}

// To revoke an access token leaves its refresh token alive, and the other way round.
func TestHoleRevokingAccessLeavesRefreshAlive(t *testing.T) {
	for i := range 2 {
		w := newEndpointWorld(t)
		access, refresh := w.signedIn("zhang-san")
		w.post("/oauth2/revoke", "probe", endpointSecret, url.Values{"token": {[]string{access, refresh}[i]}})
		require.False(t, w.live(access))
		endpointRefused(t, w.refresh(refresh), 400, "invalid_grant")
	}
}

// Codes, tokens and secrets are in its store in clear text.
func TestHoleClearTextAtRest(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.consent("zhang-san")
	access, refresh := w.tokens(w.exchange(code))
	cc := w.accessToken("probe", endpointSecret)
	for _, kind := range []string{"signin", "access", "token", "grant", "poll", "push", "ledger"} {
		found, err := w.mem.List(t.Context(), store.Query{Kind: kind, Limit: store.MaxPage})
		require.NoError(t, err)
		for _, r := range found {
			for _, secret := range []string{code, access, refresh, cc, endpointSecret} {
				require.NotContains(t, r.ID+string(r.Data), secret)
				require.NotContains(t, r.ID+string(r.Data), secret[5:])
			}
		}
	}
}
