package authz_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// A remoteWorld is a social server, and a resource server in front of which somebody can cut the line.
type remoteWorld struct {
	*authztest.Server
	t    *testing.T
	line *cutLine
	m    *authz.Remote
	log  lockedBuffer
	mux  *http.ServeMux
	via  atomic.Pointer[authz.Delegation]
	ran  atomic.Int64
}

func newRemoteWorld(t *testing.T, change ...func(*authz.Config)) *remoteWorld {
	c := authz.Config{
		Apps: []authz.App{{ID: "bookbot", Actions: []string{"message.write", "member.read"}, RealNames: true}, {ID: "rs", Introspect: true}},
		Triggers: []grant.Trigger{
			{ID: "three", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 3, Deliver: grant.Poll},
		},
	}
	for _, f := range change {
		f(&c)
	}
	w := &remoteWorld{t: t, Server: authztest.New(t, c), mux: http.NewServeMux()}
	w.line = &cutLine{next: http.DefaultTransport}
	w.m = w.remote(nil)
	w.mux.Handle("POST /groups/{group}/messages", w.m.Require("group:{group}/message.write")(w.handler()))
	w.mux.Handle("GET /groups/{group}/members", w.m.Require("group:{group}/member.read")(w.handler()))
	return w
}

func (w *remoteWorld) remote(change func(*authz.RemoteConfig)) *authz.Remote {
	w.t.Helper()
	c := authz.RemoteConfig{Issuer: w.URL, ClientID: "rs", Secret: grant.NewSecret("secret-of-rs"), Client: &http.Client{Transport: w.line}, Log: slog.New(slog.NewTextHandler(&w.log, nil))}
	if change != nil {
		change(&c)
	}
	m, err := authz.NewRemote(c)
	require.NoError(w.t, err)
	return m
}

func (w *remoteWorld) handler() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		d, _ := authz.FromContext(r.Context())
		w.via.Store(d)
		w.ran.Add(1)
		rw.WriteHeader(http.StatusCreated)
	})
}

// three is a token with three uses in group 42.
func (w *remoteWorld) three() string {
	w.t.Helper()
	return w.Redeem(w.MustEmit(grant.Event{ID: fmt.Sprint("m", w.ran.Add(1000)), Operation: grant.Mention, Account: "zhang-san", Domain: group42, App: "bookbot"})[0])
}

func (w *remoteWorld) left(token string) int {
	w.t.Helper()
	d, err := w.Engine().Inspect(context.Background(), grant.NewSecret(token))
	if errors.Is(err, grant.ErrUsedUp) {
		return 0
	}
	require.NoError(w.t, err)
	return d.Left
}

func (w *remoteWorld) call(token, method, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return serve(w.mux, r)
}

func (w *remoteWorld) post(token string) *httptest.ResponseRecorder {
	return w.call(token, "POST", "/groups/42/messages")
}

// A cutLine loses answers after the server has given them, or requests before it has seen them.
type cutLine struct {
	next         http.RoundTripper
	mu           sync.Mutex
	asked        int
	loseAnswers  int // of the next ones
	loseRequests int
	answer       func(*http.Request) *http.Response // instead of the server
	keys         map[string]int
}

func (l *cutLine) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	l.asked++
	if l.keys == nil {
		l.keys = map[string]int{}
	}
	l.keys[r.Header.Get("Idempotency-Key")]++
	request, answer, instead := l.loseRequests > 0, l.loseAnswers > 0, l.answer
	switch {
	case request:
		l.loseRequests--
	case answer:
		l.loseAnswers--
	}
	l.mu.Unlock()
	switch {
	case instead != nil:
		return instead(r), nil
	case request:
		return nil, errors.New("connection refused")
	}
	res, err := l.next.RoundTrip(r)
	if answer && err == nil {
		_ = res.Body.Close()
		return nil, errors.New("connection reset by peer")
	}
	return res, err
}

func (l *cutLine) lose(requests, answers int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseRequests, l.loseAnswers, l.asked = requests, answers, 0
}

// A resource server in another process acts by the same delegation as a handler behind the server's own Require.
func TestRemote(t *testing.T) {
	w := newRemoteWorld(t)
	token := w.three()
	require.Equal(t, 201, w.post(token).Code)
	d := w.via.Load()
	local, err := w.Use(context.Background(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
	require.NoError(t, err)
	require.Equal(t, 2, d.Left)
	require.Equal(t, local.Granted(), d.Granted())
	require.Equal(t, local.GrantedIn(), d.GrantedIn())
	require.Equal(t, []any{local.Account, local.App, local.Domain, local.Scope, local.Grant, local.Trigger, local.Operation, local.Event, local.Uses},
		[]any{d.Account, d.App, d.Domain, d.Scope, d.Grant, d.Trigger, d.Operation, d.Event, d.Uses})
	require.True(t, d.Spent())
	require.Equal(t, 201, w.post(token).Code)
	require.Equal(t, 401, w.post(token).Code)

	unlimited := newRemoteWorld(t, func(c *authz.Config) { c.Triggers[0].Uses = grant.Unlimited })
	token = unlimited.three()
	for range 5 {
		require.Equal(t, 201, unlimited.post(token).Code)
	}
	require.Equal(t, grant.Unlimited, unlimited.via.Load().Left)
}

// P10: what is refused is refused with the very answer of the server's own Require.
func TestRemoteRefuses(t *testing.T) {
	var denied atomic.Bool
	w := newRemoteWorld(t, func(c *authz.Config) {
		c.Permit = func(_ context.Context, a grant.Access) error {
			if denied.Load() {
				return fmt.Errorf("%w: has left", grant.ErrDenied)
			}
			return nil
		}
	})
	local := http.NewServeMux()
	local.Handle("POST /groups/{group}/messages", w.Require("group:{group}/message.write")(http.HandlerFunc(fine)))
	local.Handle("GET /groups/{group}/members", w.Require("group:{group}/member.read")(http.HandlerFunc(fine)))
	same := func(token, method, path string, status int, reason string) {
		t.Helper()
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set("Authorization", "Bearer "+token)
		here, there := w.call(token, method, path), serve(local, r)
		require.Equal(t, status, here.Code, here.Body)
		require.Equal(t, reason, reasonOf(t, here))
		require.Equal(t, there.Code, here.Code)
		require.Equal(t, there.Body.String(), here.Body.String())
		if challenge := there.Header()["Www-Authenticate"]; challenge != nil {
			challenge[0] = strings.Replace(challenge[0], `, resource_metadata="`+w.URL+`/.well-known/oauth-protected-resource"`, "", 1)
		}
		require.Equal(t, there.Header(), here.Header())
	}
	spent, revoked, live := w.three(), w.three(), w.three()
	for range 3 {
		require.Equal(t, 201, w.post(spent).Code)
	}
	require.NoError(t, w.Engine().RevokeToken(t.Context(), "bookbot", grant.NewSecret(revoked)))
	const in42 = "/groups/42/messages"
	w.ran.Store(0)
	same(spent, "POST", in42, 401, "used_up")
	same(revoked, "POST", in42, 401, "revoked")
	same(live, "POST", "/groups/7/messages", 403, "wrong_domain")
	same(live, "GET", "/groups/42/members", 403, "wrong_action")
	denied.Store(true)
	same(live, "POST", in42, 403, "rights_changed")
	denied.Store(false)
	same("bhst_forged", "POST", in42, 401, "")
	same(live+"A", "POST", in42, 401, "")
	same("nothing of the kind", "POST", in42, 401, "")
	same(live, "POST", "/groups/"+strings.Repeat("x", 300)+"/messages", 404, "")
	w.Clock.Advance(time.Hour)
	same(live, "POST", in42, 401, "expired")
	require.Equal(t, `Bearer realm="`+w.URL+`"`, w.call("", "POST", in42).Header().Get("WWW-Authenticate"))
	require.Zero(t, w.ran.Load())
	require.Empty(t, w.log.String())

	// What cannot be a token of the server's costs no request.
	w.line.lose(0, 0)
	for _, token := range []string{"x", "bhsc_x", "bhat_x", "bhst_\xff", "bhst_ x", "bhst_" + strings.Repeat("A", 9000), "a.b.c"} {
		require.Equal(t, 401, w.post(token).Code)
	}
	require.Zero(t, w.line.asked)
}

// P3: an answer that is lost is asked for again, as the same use: it is spent once, and the handler runs once.
func TestRemoteLostAnswers(t *testing.T) {
	w := newRemoteWorld(t)
	token := w.three()
	w.line.lose(0, 1)
	require.Equal(t, 201, w.post(token).Code)
	require.Equal(t, 2, w.line.asked)
	require.Equal(t, 2, w.left(token))
	require.Equal(t, 2, w.via.Load().Left)
	w.line.lose(1, 0)
	require.Equal(t, 201, w.post(token).Code)
	require.Equal(t, 1, w.left(token))
	w.line.lose(0, 1)
	require.Equal(t, 201, w.post(token).Code, "the last use, too: it was this one")
	require.Equal(t, 0, w.left(token))
	for key, n := range w.line.keys {
		require.Equal(t, 2, n, key)
	}

	// Lost twice, nothing is let through; the use may be gone, and no more than that one.
	token, ran := w.three(), w.ran.Load()+1000
	w.line.lose(0, 2)
	rec := w.post(token)
	require.Equal(t, 503, rec.Code)
	require.Equal(t, "1", rec.Header().Get("Retry-After"))
	require.JSONEq(t, `{"error":"temporarily_unavailable","error_description":"the server could not decide"}`, rec.Body.String())
	require.Equal(t, 2, w.left(token))
	require.Equal(t, ran-1000, w.ran.Load())
	w.line.lose(2, 0)
	require.Equal(t, 503, w.post(token).Code)
	require.Equal(t, 2, w.left(token))
	require.Contains(t, w.log.String(), "connection reset")
	require.NotContains(t, w.log.String(), token)

	// Who has left is not asked for again.
	ctx, cancel := context.WithCancel(t.Context())
	w.line.lose(1, 0)
	w.line.answer = func(*http.Request) *http.Response {
		cancel()
		return &http.Response{StatusCode: 502, Body: http.NoBody}
	}
	_, err := w.m.Use(ctx, authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
	require.Error(t, err)
	require.Equal(t, 1, w.line.asked)
}

// A connection that a real proxy cuts, after the request has passed, is an answer that is lost.
func TestRemoteThroughAProxyThatCuts(t *testing.T) {
	w := newRemoteWorld(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var conns atomic.Int64
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			cut := conns.Add(1) == 1
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", strings.TrimPrefix(w.URL, "http://"))
				if err != nil {
					return
				}
				defer out.Close()
				wg.Go(func() { _, _ = io.Copy(out, in); _ = out.(*net.TCPConn).CloseWrite() })
				if cut {
					_, _ = out.Read(make([]byte, 1)) // the server has answered
					return
				}
				_, _ = io.Copy(in, out)
			})
		}
	})
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	m := w.remote(func(c *authz.RemoteConfig) {
		c.Issuer, c.Client = "http://"+listener.Addr().String(), &http.Client{Transport: transport}
	})
	token := w.three()
	d, err := m.Use(t.Context(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
	require.NoError(t, err)
	require.Equal(t, 2, d.Left)
	require.EqualValues(t, 2, conns.Load())
	require.Equal(t, 2, w.left(token))
}

// P3: the last use has one winner, however many resource servers race for it.
func TestRemoteTogether(t *testing.T) {
	w := newRemoteWorld(t)
	token := w.three()
	require.Equal(t, 201, w.post(token).Code)
	require.Equal(t, 201, w.post(token).Code)
	remotes := []*authz.Remote{w.m, w.remote(func(c *authz.RemoteConfig) { c.Client = nil })}
	errs := make([]error, 64)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = remotes[i%2].Use(context.Background(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			require.ErrorIs(t, err, grant.ErrUsedUp)
		}
	}
	require.Equal(t, 1, won)
}

// Law 5: whatever the server says that is neither a yes nor a no lets nothing through, and no other address is told the token.
func TestRemoteFailsClosed(t *testing.T) {
	w := newRemoteWorld(t)
	token := w.three()
	yes, err := json.Marshal(map[string]any{"account": "zhang-san", "app": "bookbot", "domain": "group:7", "scope": "group:7/message.write",
		"granted": "group:7/message.write", "grant": "g", "exp": 4102444800, "uses": 3, "left": 2})
	require.NoError(t, err)
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for name, answer := range map[string]struct {
		status int
		body   string
		header string
	}{
		"another scope":        {200, string(yes), ""},
		"no delegation":        {200, `{"active":true}`, ""},
		"not JSON":             {200, `<html>yes</html>`, ""},
		"null":                 {200, `null`, ""},
		"nothing":              {200, ``, ""},
		"no content":           {204, ``, ""},
		"huge":                 {200, `{"account":"` + strings.Repeat("x", 70000) + `"}`, ""},
		"a redirect":           {307, ``, other.URL},
		"moved":                {301, ``, other.URL},
		"our own fault":        {401, `{"error":"invalid_client"}`, ""},
		"not allowed":          {403, `{"error":"unauthorized_client"}`, ""},
		"not found":            {404, `not found`, ""},
		"a word nobody knows":  {400, `{"error":"invalid_token","error_reason":"moon"}`, ""},
		"our own request":      {400, `{"error":"invalid_request","error_reason":"expired"}`, ""},
		"no word at all":       {400, ``, ""},
		"too many":             {429, `{"error":"slow_down"}`, ""},
		"away":                 {503, `{"error":"temporarily_unavailable"}`, ""},
		"a gateway that waits": {504, ``, ""},
	} {
		w.line.answer = func(*http.Request) *http.Response {
			h := http.Header{}
			if answer.header != "" {
				h.Set("Location", answer.header)
			}
			return &http.Response{StatusCode: answer.status, Header: h, Body: io.NopCloser(strings.NewReader(answer.body))}
		}
		w.line.lose(0, 0)
		before := w.ran.Load()
		require.Equal(t, 503, w.post(token).Code, name)
		require.Equal(t, before, w.ran.Load(), name)
		asked := 1
		if answer.status >= 500 {
			asked = 2 // it may be an answer that was lost on the server's side
		}
		require.Equal(t, asked, w.line.asked, name)
	}
	require.Zero(t, elsewhere.Load())
	logs := w.log.String()
	require.Contains(t, logs, "401: invalid_client")
	require.NotContains(t, logs, token)
	require.NotContains(t, logs, "secret-of-rs")
	w.line.answer = nil
	require.Equal(t, 3, w.left(token))

	// A server that hangs is given up on, by the Timeout and by who asks.
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer hang.Close()
	m := w.remote(func(c *authz.RemoteConfig) {
		c.Issuer, c.Client, c.Timeout = hang.URL, nil, 20*time.Millisecond
	})
	_, err = m.Use(t.Context(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	m = w.remote(func(c *authz.RemoteConfig) { c.Issuer, c.Client = hang.URL, nil })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = m.Use(ctx, authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// An app's Idempotency-Key is no key of the resource server's: it spends each time.
func TestRemoteTakesNoAppsKey(t *testing.T) {
	w := newRemoteWorld(t)
	token := w.three()
	for left := 2; left >= 0; left-- {
		r := httptest.NewRequest("POST", "/groups/42/messages", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Idempotency-Key", "same")
		require.Equal(t, 201, serve(w.mux, r).Code)
		require.Equal(t, left, w.left(token))
	}
}

func TestRemoteRequireFunc(t *testing.T) {
	w := newRemoteWorld(t)
	token := w.three()
	var answer error
	want := scope.MustParse("group:42/message.write")
	h := w.m.RequireFunc(func(*http.Request) (scope.Scope, error) { return want, answer })(w.handler())
	call := func() *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		return serve(h, r)
	}
	require.Equal(t, 201, call().Code)
	for err, status := range map[error]int{fs.ErrNotExist: 404, authz.ErrInvalidRequest: 400, errors.New("the database is away"): 500} {
		answer = err
		require.Equal(t, status, call().Code)
	}
	answer, want = nil, scope.Scope{}
	require.Equal(t, 500, call().Code)
	require.Equal(t, 2, w.left(token))

	// A route without the value is a mistake in the program, never an empty domain.
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	require.Equal(t, 500, serve(w.m.Require("group:{group}/message.write")(w.handler()), r).Code)
	require.Contains(t, w.log.String(), "{group}")

	require.Panics(t, func() { w.m.Require("group:{group}") })
	require.Panics(t, func() { w.m.Require("group:{group}/message.write", authz.SpendInHandler) })
}

// Challenges lead to the resource's own metadata, which leads to the server.
func TestRemoteResourceMetadata(t *testing.T) {
	w := newRemoteWorld(t)
	m := w.remote(func(c *authz.RemoteConfig) { c.Resource = "https://api.example/v1" })
	mux := http.NewServeMux()
	m.Routes(mux.Handle)
	rec := serve(m.Require("group:42/message.write")(w.handler()), httptest.NewRequest("POST", "/", nil))
	require.Contains(t, rec.Header().Get("WWW-Authenticate"), `resource_metadata="https://api.example/.well-known/oauth-protected-resource/v1"`)
	rec = serve(mux, httptest.NewRequest("GET", "/.well-known/oauth-protected-resource/v1", nil))
	require.JSONEq(t, `{"resource":"https://api.example/v1","authorization_servers":["`+w.URL+`"],"bearer_methods_supported":["header"]}`, rec.Body.String())
	require.Equal(t, 405, serve(mux, httptest.NewRequest("POST", "/.well-known/oauth-protected-resource/v1", nil)).Code)
	w.m.Routes(func(string, http.Handler) { t.Error("without a Resource there is none") })
}

func TestNewRemote(t *testing.T) {
	_, err := authz.NewRemote(authz.RemoteConfig{Issuer: "http://social.example/?x", Prefix: "oauth2/", Resource: "api", Timeout: -1, Secret: grant.NewSecret("s3cret")})
	for _, name := range []string{"Issuer", "Prefix", "ClientID", "Resource", "Timeout"} {
		require.ErrorContains(t, err, name)
	}
	require.NotContains(t, err.Error(), "s3cret")
	_, err = authz.NewRemote(authz.RemoteConfig{Issuer: "https://social.example/chat", Prefix: "/o", ClientID: "rs", Secret: grant.NewSecret("x")})
	require.NoError(t, err)
}

// P6: neither the token nor the secret is in what a Remote prints as.
func TestRemoteShowsNoToken(t *testing.T) {
	w := newRemoteWorld(t)
	token := w.three()
	w.line.lose(2, 0)
	_, err := w.m.Use(t.Context(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
	require.Error(t, err)
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Error("x", "err", err)
	require.NotContains(t, err.Error()+b.String(), token)
	require.NotContains(t, err.Error()+b.String(), "secret-of-rs")
}
