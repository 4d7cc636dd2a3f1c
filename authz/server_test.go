package authz_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// form posts a form to an endpoint as a client.
func form(h http.Handler, path, id, secret string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(id, url.QueryEscape(secret))
	return serve(h, r)
}

// The endpoints stand beside the patterns that a host has for everything.
func TestRoutesBesideAHost(t *testing.T) {
	az, err := authz.New(configured())
	require.NoError(t, err)
	for _, row := range []struct {
		host []string
		want map[string]string // what of the host's still answers
	}{
		{[]string{"GET /", "GET /{user}/{repo}"}, map[string]string{"/": "GET /", "/torvalds/linux": "GET /{user}/{repo}", "/oauth2/other": "GET /{user}/{repo}", "/oauth2/token/x": "GET /"}},
		{[]string{"/", "/{user}/{repo}"}, map[string]string{"/": "/", "/oauth2/other": "/{user}/{repo}"}},
		{[]string{"GET /{page...}", "GET /oauth2/{rest...}", "POST /{user}/{repo}", "DELETE /{user}/{repo}", "OPTIONS /"}, map[string]string{"/": "GET /{page...}", "/oauth2/other": "GET /oauth2/{rest...}"}},
		{[]string{"GET /{user}/token", "POST /.well-known/{x}"}, map[string]string{"/x/token": "GET /{user}/token"}},
	} {
		mux := http.NewServeMux()
		for _, pattern := range row.host {
			mux.HandleFunc(pattern, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, pattern) })
		}
		var patterns []string
		az.Routes(func(pattern string, h http.Handler) {
			patterns = append(patterns, pattern)
			mux.Handle(pattern, h)
		})
		require.Contains(t, patterns, "POST /oauth2/token")
		for path, allow := range map[string]string{"/oauth2/token": "POST", "/oauth2/introspect": "POST", "/oauth2/revoke": "POST", "/oauth2/grants": "GET", "/oauth2/use": "POST", "/.well-known/oauth-authorization-server": "GET, HEAD", "/.well-known/oauth-protected-resource": "GET, HEAD"} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
				rec := serve(mux, httptest.NewRequest(method, path, nil))
				if strings.Contains(allow, method) {
					require.NotEqual(t, 405, rec.Code, method+path)
				} else {
					require.Equal(t, 405, rec.Code, method+path)
					require.Equal(t, allow, rec.Header().Get("Allow"))
				}
				require.Equal(t, "application/json", rec.Header().Get("Content-Type"), method+path)
			}
		}
		for path, want := range row.want {
			require.Equal(t, want, serve(mux, httptest.NewRequest("GET", path, nil)).Body.String(), path)
		}
	}
}

// An issuer with a path, and a prefix of one's own: the app that follows the metadata finds everything.
func TestRoutesOfAnIssuerWithAPath(t *testing.T) {
	mux := http.NewServeMux()
	web := httptest.NewServer(mux)
	defer web.Close()
	c := configured()
	c.Issuer, c.Prefix = web.URL+"/chat/one", "/auth/v1"
	c.Triggers[0].Deliver = grant.Poll
	az, err := authz.New(c)
	require.NoError(t, err)
	require.Equal(t, c.Issuer, az.Issuer())
	az.Routes(mux.Handle)
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(http.HandlerFunc(fine)))

	res, err := http.Get(web.URL + "/.well-known/oauth-authorization-server/chat/one") // RFC 8414 §3.1
	require.NoError(t, err)
	defer res.Body.Close()
	var meta struct {
		Issuer string
		Token  string `json:"token_endpoint"`
		Revoke string `json:"revocation_endpoint"`
		Grants string `json:"behest_grants_endpoint"`
	}
	require.NoError(t, json.NewDecoder(res.Body).Decode(&meta))
	require.Equal(t, c.Issuer, meta.Issuer)
	bot := &app.Client{Issuer: meta.Issuer, ID: "bookbot", Secret: app.NewSecret("long enough"), TokenURL: meta.Token, GrantsURL: meta.Grants, RevokeURL: meta.Revoke}
	_, err = az.Emit(t.Context(), bubbleMention("m1"))
	require.NoError(t, err)
	grants, err := bot.Grants(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, grants, 1)
	token, err := bot.Redeem(t.Context(), grants[0].Code)
	require.NoError(t, err)
	req, err := http.NewRequest("POST", web.URL+"/groups/42/messages", nil)
	require.NoError(t, err)
	done, err := bot.Do(req, token)
	require.NoError(t, err)
	done.Body.Close()
	require.NoError(t, bot.Revoke(t.Context(), token))
	for _, path := range []string{"/oauth2/token", "/auth/v1/token", "/chat/one/oauth2/token"} {
		require.Equal(t, 404, serve(mux, httptest.NewRequest("POST", path, nil)).Code, path)
	}
}

// New starts no goroutine, and nothing global is any other after a server has worked.
func TestNewTouchesNothing(t *testing.T) {
	before, logger := runtime.NumGoroutine(), slog.Default()
	descriptions, codes := maps.Clone(oautherrors.Descriptions), maps.Clone(oautherrors.StatusCodes)
	client := *http.DefaultClient
	for range 20 {
		c := configured()
		c.Triggers[0].Deliver = grant.Poll
		az, err := authz.New(c)
		require.NoError(t, err)
		mux := http.NewServeMux()
		az.Routes(mux.Handle)
		_, err = az.Emit(t.Context(), bubbleMention("m1"))
		require.NoError(t, err)
		for _, values := range []url.Values{{"grant_type": {"client_credentials"}}, {"grant_type": {"client_credentials"}, "scope": {"x"}}, {"grant_type": {"x"}}, {}} {
			form(mux, "/oauth2/token", "bookbot", "long enough", values)
			form(mux, "/oauth2/token", "bookbot", "wrong", values)
		}
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before)
	require.Same(t, logger, slog.Default())
	require.Equal(t, descriptions, oautherrors.Descriptions)
	require.Equal(t, codes, oautherrors.StatusCodes)
	require.Equal(t, client, *http.DefaultClient)
}

func TestWebhookKeys(t *testing.T) {
	c := configured()
	c.Key = grant.NewSecret(strings.Repeat("k", 32))
	c.Apps[1].WebhookSecret = grant.NewSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	one, err := authz.New(c)
	require.NoError(t, err)
	two, err := authz.New(c)
	require.NoError(t, err)
	require.Equal(t, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", one.WebhookSecret("pollbot").Reveal())
	require.Regexp(t, "^whsec_[A-Za-z0-9+/]{43}=$", one.WebhookSecret("bookbot").Reveal())
	require.Regexp(t, "^whpk_[A-Za-z0-9+/]{43}=$", one.WebhookKey("bookbot"))
	require.Equal(t, two.WebhookSecret("bookbot").Reveal(), one.WebhookSecret("bookbot").Reveal())
	require.Equal(t, two.WebhookKey("bookbot"), one.WebhookKey("bookbot"))
	require.NotEqual(t, one.WebhookKey("pollbot"), one.WebhookKey("bookbot"))
	require.True(t, one.WebhookSecret("nobody").IsZero())
	require.Empty(t, one.WebhookKey("nobody"))
}

// What is over is purged, tokens of client_credentials too.
func TestRunPurges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers, mem := bubble(t, 1)
		az := servers[0]
		mux := http.NewServeMux()
		az.Routes(mux.Handle)
		stop := background(t, func(ctx context.Context) { _ = az.Run(ctx) })
		rec := form(mux, "/oauth2/token", "bookbot", "book-secret", url.Values{"grant_type": {"client_credentials"}})
		require.Equal(t, 200, rec.Code, rec.Body)
		issued, err := az.Emit(t.Context(), bubbleMention("m1"))
		require.NoError(t, err)
		_, token, err := az.Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
		require.NoError(t, err)
		count := func(kind string) int {
			found, err := mem.List(t.Context(), store.Query{Kind: kind})
			require.NoError(t, err)
			return len(found)
		}
		require.Equal(t, []int{1, 1, 1}, []int{count("access"), count("token"), count("grant")})
		time.Sleep(9 * time.Minute)
		require.Equal(t, []int{1, 1, 1}, []int{count("access"), count("token"), count("grant")})
		time.Sleep(3 * time.Minute)
		require.Zero(t, count("access"))
		_, err = az.Engine().Inspect(t.Context(), token)
		require.Equal(t, "expired", grant.Reason(err), "the holder is still told why")
		stop()
		time.Sleep(100 * 24 * time.Hour)
		stop = background(t, func(ctx context.Context) { _ = az.Run(ctx) })
		time.Sleep(2 * time.Minute)
		stop()
		for _, kind := range []string{"token", "grant", "event", "ledger", "poll", "access"} {
			require.Zero(t, count(kind), kind)
		}
	})
}

// A token of client_credentials opens the app's waiting grants; a long poll answers as soon as there is one.
func TestLongPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers, mem := bubble(t, 2)
		mux := http.NewServeMux()
		servers[0].Routes(mux.Handle)
		var access struct {
			Token string `json:"access_token"`
		}
		rec := form(mux, "/oauth2/token", "bookbot", "book-secret", url.Values{"grant_type": {"client_credentials"}})
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &access))
		poll := func(ctx context.Context, wait string) chan *httptest.ResponseRecorder {
			r := httptest.NewRequestWithContext(ctx, "GET", "/oauth2/grants?wait="+wait, nil)
			r.Header.Set("Authorization", "Bearer "+access.Token)
			answer := make(chan *httptest.ResponseRecorder, 1)
			go func() { answer <- serve(mux, r) }()
			synctest.Wait()
			return answer
		}
		began := time.Now()
		answer := poll(t.Context(), "0")
		require.Equal(t, `{"grants":[]}`+"\n", (<-answer).Body.String())
		answer = poll(t.Context(), "5s")
		require.Empty(t, answer)
		require.Equal(t, `{"grants":[]}`+"\n", (<-answer).Body.String())
		require.Equal(t, 5*time.Second, time.Since(began))

		// Emitted here: at once. On another node, or in a transaction before Wake: at the next look.
		for name, row := range map[string]struct {
			emit func(id string) error
			most time.Duration
		}{
			"here":          {func(id string) error { _, err := servers[0].Emit(t.Context(), bubbleMention(id)); return err }, 0},
			"another node":  {func(id string) error { _, err := servers[1].Emit(t.Context(), bubbleMention(id)); return err }, 250 * time.Millisecond},
			"a transaction": {func(id string) error { _, err := servers[0].In(mem).Emit(t.Context(), bubbleMention(id)); return err }, 250 * time.Millisecond},
			"and its Wake": {func(id string) error {
				_, err := servers[0].In(mem).Emit(t.Context(), bubbleMention(id))
				servers[0].Wake()
				return err
			}, 0},
		} {
			answer := poll(t.Context(), "30s")
			began := time.Now()
			require.NoError(t, row.emit(name))
			require.Contains(t, (<-answer).Body.String(), `"id":"`+name+`"`)
			require.LessOrEqual(t, time.Since(began), row.most, name)
		}

		// A poll ends with its request.
		ctx, cancel := context.WithCancel(t.Context())
		began = time.Now()
		answer = poll(ctx, "30s")
		cancel()
		<-answer
		require.Zero(t, time.Since(began))
	})
}
