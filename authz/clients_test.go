package authz_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const (
	endpointIssuer = "https://social.example"
	endpointSecret = "s3cr:t +%&-" // every character that form-encoding, Basic or both could get wrong
)

func endpointApps() []authz.App {
	return []authz.App{
		{ID: "probe", Secret: grant.NewSecret(endpointSecret), Actions: []string{"message.write", "member.read"}, RedirectURIs: []string{"https://probe.example/cb", "https://probe.example/cb?a=1&b=%20x", "http://127.0.0.1/cb", "http://[::1]/cb?x=1", "http://localhost/cb", "http://127.0.0.1:7000/fixed"}},
		{ID: "other", Secret: grant.NewSecret("other-secret"), Actions: []string{"message.write"}, RedirectURIs: []string{"https://other.example/cb"}},
		{ID: "rs", Secret: grant.NewSecret("rs-secret"), Introspect: true},
		{ID: "native", AuthMethod: "none", RedirectURIs: []string{"http://127.0.0.1/cb"}},
	}
}

// An endpointWorld is all endpoints on a mux, over a memory store that can be made to fail, under a clock that stands still.
type endpointWorld struct {
	t       testing.TB
	clock   atomic.Int64 // microseconds ahead of the start
	start   func() time.Time
	mem     *store.Memory
	store   *endpointStore
	permit  atomic.Pointer[error]
	news    atomic.Pointer[chan struct{}]
	login   atomic.Pointer[error] // what asking who is logged in fails with
	engine  *grant.Engine
	clients *authz.Clients
	mux     *http.ServeMux
	events  atomic.Int64

	mu   sync.Mutex
	logs bytes.Buffer
}

// An endpointStore fails with an error, if it has one.
type endpointStore struct {
	store.Store
	failGet, failApply, failClaim atomic.Pointer[error]
}

func endpointFault(p *atomic.Pointer[error]) error {
	if e := p.Load(); e != nil {
		return *e
	}
	return nil
}

func (s *endpointStore) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if err := endpointFault(&s.failGet); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, kind, ids...)
}

func (s *endpointStore) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	if err := endpointFault(&s.failApply); err != nil {
		return store.Outcome{}, err
	}
	return s.Store.Apply(ctx, now, ops)
}

func (s *endpointStore) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if err := endpointFault(&s.failClaim); err != nil {
		return nil, err
	}
	return s.Store.Claim(ctx, q, until)
}

// An endpointUnhashable cannot be the key of a map, which go-oauth2 makes of errors.
type endpointUnhashable []string

func (e endpointUnhashable) Error() string { return "the disk is full of " + strings.Join(e, " ") }

func newEndpointWorld(t testing.TB) *endpointWorld {
	w := &endpointWorld{t: t, mem: store.NewMemory(), mux: http.NewServeMux()}
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	w.start = func() time.Time { return began }
	w.store = &endpointStore{Store: w.mem}
	log := slog.New(slog.NewTextHandler(endpointLog{w}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	w.engine, err = grant.NewEngine(grant.Config{
		Store: w.store, Key: grant.NewSecret(strings.Repeat("k", 32)), Now: w.now,
		Permit: func(context.Context, grant.Access) error { return endpointFault(&w.permit) },
		Apps:   []grant.App{{ID: "probe", Actions: []string{"message.write", "member.read"}}, {ID: "other", Actions: []string{"message.write"}}, {ID: "rs"}, {ID: "native"}},
		Triggers: []grant.Trigger{
			{App: "probe", On: grant.Mention, In: "group:*", Allow: []string{"message.write", "member.read"}, For: 10 * time.Minute, Uses: 3, Deliver: grant.Poll, Delegates: []string{"other"}},
			{App: "probe", On: grant.Command, In: "group:*", Allow: []string{"message.write"}, For: 10 * time.Minute, Uses: grant.Unlimited, Deliver: grant.Push},
			{App: "other", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Deliver: grant.Poll},
		},
	})
	require.NoError(t, err)
	w.clients, err = authz.NewClients(endpointApps())
	require.NoError(t, err)
	signIn := &authz.AuthorizationEndpoint{Engine: w.engine, Clients: w.clients, Store: w.store, Key: grant.NewSecret(strings.Repeat("k", 32)),
		Issuer: endpointIssuer, Account: w.account, LoginURL: "/login?x=1", Now: w.now, Log: log}
	w.mux.Handle("/oauth2/authorize", signIn)
	w.mux.Handle("/oauth2/token", &authz.TokenEndpoint{Engine: w.engine, Clients: w.clients, Store: w.store, Issuer: endpointIssuer, SignIn: signIn, Now: w.now, Log: log})
	w.mux.Handle("/oauth2/introspect", &authz.IntrospectionEndpoint{Engine: w.engine, Clients: w.clients, Store: w.store, Issuer: endpointIssuer, SignIn: signIn, Now: w.now, Log: log})
	w.mux.Handle("/oauth2/revoke", &authz.RevocationEndpoint{Engine: w.engine, Clients: w.clients, Store: w.store, SignIn: signIn, Now: w.now, Log: log})
	w.mux.Handle("/oauth2/use", &authz.UseEndpoint{Engine: w.engine, Clients: w.clients, Log: log})
	w.mux.Handle("/oauth2/grants", &authz.GrantsEndpoint{Engine: w.engine, Clients: w.clients, Store: w.store, Now: w.now, Log: log,
		Wait: func(string) (<-chan struct{}, time.Duration) {
			if c := w.news.Load(); c != nil {
				return *c, 250 * time.Millisecond
			}
			return nil, 250 * time.Millisecond
		}})
	t.Cleanup(func() {
		logs := w.logged()
		for _, secret := range []string{"bhsc_", "bhst_", "bhat_", "bhac_", "bhsa_", "bhsr_", endpointSecret, url.QueryEscape(endpointSecret), "other-secret", "rs-secret"} {
			require.NotContains(t, logs, secret, "P6: a secret in the log")
		}
	})
	return w
}

type endpointLog struct{ w *endpointWorld }

func (l endpointLog) Write(p []byte) (int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.w.logs.Write(p)
}

func (w *endpointWorld) logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logs.String()
}

func (w *endpointWorld) now() time.Time {
	return w.start().Add(time.Duration(w.clock.Load()) * time.Microsecond)
}

// account is who is logged in: the cookie says so, since this is a test.
func (w *endpointWorld) account(r *http.Request) (string, error) {
	if err := endpointFault(&w.login); err != nil {
		return "", err
	}
	if c, err := r.Cookie("account"); err == nil {
		return c.Value, nil
	}
	return "", nil
}

func (w *endpointWorld) advance(d time.Duration) { w.clock.Add(d.Microseconds()) }

// emit makes a new event and returns its grant.
func (w *endpointWorld) emit(op grant.Operation, app string) grant.Grant {
	w.t.Helper()
	ev := grant.Event{ID: fmt.Sprintf("m%d", w.events.Add(1)), Operation: op, Account: "zhang-san", Domain: scope.MustDomain("group:42"),
		App: app, Text: "<b>hello & 你好</b>", Data: map[string]string{"k": "v"}}
	if op == grant.Command {
		ev.Target = "/book"
	}
	grants, err := w.engine.Emit(context.Background(), ev)
	require.NoError(w.t, err)
	require.Len(w.t, grants, 1)
	return grants[0]
}

func (w *endpointWorld) code(app string) string { return w.emit(grant.Mention, app).Code.Reveal() }

// token redeems a new code.
func (w *endpointWorld) token(app string) string {
	w.t.Helper()
	_, token, err := w.engine.Redeem(context.Background(), app, grant.NewSecret(w.code(app)))
	require.NoError(w.t, err)
	return token.Reveal()
}

// accessToken is one of client_credentials.
func (w *endpointWorld) accessToken(app, secret string) string {
	w.t.Helper()
	rec := w.post("/oauth2/token", app, secret, url.Values{"grant_type": {"client_credentials"}})
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	return endpointJSON(w.t, rec)["access_token"].(string)
}

func (w *endpointWorld) use(token string) error {
	_, err := w.engine.Use(context.Background(), token, scope.MustParse("group:42/message.write"))
	return err
}

func endpointBasic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
}

// endpointRequest is a raw request; header is name, value, name, value, where "Authorization" in place of the default one replaces it.
func endpointRequest(method, path, body string, header ...string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func (w *endpointWorld) do(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.mux.ServeHTTP(rec, r)
	return rec
}

func (w *endpointWorld) post(path, id, secret string, form url.Values) *httptest.ResponseRecorder {
	return w.do(endpointRequest("POST", path, form.Encode(), "Authorization", endpointBasic(id, secret)))
}

func (w *endpointWorld) redeem(code string, more ...string) *httptest.ResponseRecorder {
	form := url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {code}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return w.post("/oauth2/token", "probe", endpointSecret, form)
}

func endpointJSON(t testing.TB, rec *httptest.ResponseRecorder) map[string]any {
	t.Helper()
	require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	var out map[string]any
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &out), rec.Body)
	return out
}

// endpointRefused checks everything about a refusal that does not depend on its cause, and returns the description.
func endpointRefused(t testing.TB, rec *httptest.ResponseRecorder, status int, code string) string {
	t.Helper()
	require.Equal(t, status, rec.Code, rec.Body)
	body := endpointJSON(t, rec)
	require.Equal(t, code, body["error"], rec.Body)
	description, _ := body["error_description"].(string)
	require.NotEmpty(t, description)
	for _, c := range []byte(description) { // RFC 6749 §5.2
		require.True(t, c >= 0x20 && c <= 0x7e && c != '"' && c != '\\', description)
	}
	require.Len(t, body, 2)
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	require.Equal(t, "no-cache", rec.Header().Get("Pragma"))
	require.Equal(t, "nosniff", rec.Header().Get("X-Content-Type-Options"))
	require.Equal(t, status == http.StatusUnauthorized, rec.Header().Get("WWW-Authenticate") != "")
	if code == "invalid_client" {
		require.Equal(t, `Basic realm="behest", charset="UTF-8"`, rec.Header().Get("WWW-Authenticate"))
	}
	require.Equal(t, status == http.StatusServiceUnavailable, rec.Header().Get("Retry-After") != "")
	for _, secret := range []string{endpointSecret, "other-secret", "rs-secret", "bhst_", "bhsc_", "bhat_", "bhac_", "bhsa_", "bhsr_"} {
		require.NotContains(t, rec.Body.String(), secret)
	}
	return description
}

type endpointBadReader struct{}

func (endpointBadReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// endpointMalformed are requests to any of the POST endpoints that must be refused, whatever else is in them: valid is a body that
// would be taken.
func endpointMalformed(path, valid string) []struct {
	name   string
	r      *http.Request
	status int
	code   string
} {
	type row = struct {
		name   string
		r      *http.Request
		status int
		code   string
	}
	auth := endpointBasic("probe", endpointSecret)
	var rows []row
	add := func(status int, code, name string, r *http.Request) { rows = append(rows, row{name, r, status, code}) }
	bad := func(name, body string, header ...string) {
		add(400, "invalid_request", name, endpointRequest("POST", path, body, append([]string{"Authorization", auth}, header...)...))
	}
	unknown := func(name, more string, header ...string) {
		add(401, "invalid_client", name, endpointRequest("POST", path, valid+more, header...))
	}
	raw := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }

	for _, m := range []string{"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} {
		add(405, "invalid_request", m, endpointRequest(m, path, valid, "Authorization", auth))
	}
	add(405, "invalid_request", "GET with everything in the query", endpointRequest("GET", path+"?"+valid, "", "Authorization", auth))

	for name, query := range map[string]string{"a parameter": "x=1", "all parameters": valid, "a secret": "client_secret=x", "a token": "access_token=x", "a bare word": "x", "malformed": "%zz"} {
		add(400, "invalid_request", "query: "+name, endpointRequest("POST", path+"?"+query, valid, "Authorization", auth))
	}
	for name, types := range map[string][]string{
		"none": nil, "empty": {""}, "JSON": {"application/json"}, "multipart": {"multipart/form-data; boundary=x"}, "text": {"text/plain"},
		"another form": {"application/x-www-form-urlencoded-not"}, "malformed": {"application/x-www-form-urlencoded; charset"}, "garbage": {";;;=\xff"},
		"twice": {"application/x-www-form-urlencoded", "application/x-www-form-urlencoded"}, "joined": {"application/x-www-form-urlencoded, application/x-www-form-urlencoded"},
	} {
		r := endpointRequest("POST", path, valid, "Authorization", auth)
		r.Header["Content-Type"] = types
		add(400, "invalid_request", "content type: "+name, r)
	}
	bad("compressed", valid, "Content-Encoding", "gzip")
	bad("JSON in the body", `{"grant_type":"client_credentials","token":"\u0000%"}`)

	const large = 64 << 10
	bad("too large", valid+"&x="+strings.Repeat("a", large))
	chunked := endpointRequest("POST", path, "", "Authorization", auth)
	chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader(valid+"&x="+strings.Repeat("a", large))), -1
	add(400, "invalid_request", "too large and chunked", chunked)
	endless := endpointRequest("POST", path, "", "Authorization", auth)
	endless.Body, endless.ContentLength = io.NopCloser(endpointEndless{}), -1
	add(400, "invalid_request", "endless", endless)
	reset := endpointRequest("POST", path, "", "Authorization", auth)
	reset.Body = io.NopCloser(io.MultiReader(strings.NewReader(valid), endpointBadReader{}))
	add(400, "invalid_request", "the connection breaks", reset)
	var many strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&many, "&x%d=", i)
	}
	bad("too many parameters", valid+many.String())

	bad("repeated", valid+"&"+valid)
	bad("repeated and unknown", valid+"&x=1&x=2")
	bad("repeated and empty", valid+"&x&x=")
	bad("repeated in another encoding", valid+"&ab=1&%61b=1")
	for _, text := range []string{"x=%zz", "x=%", "x=%4", "%=1", "%zz=1"} {
		bad("percent-encoding "+text, valid+"&"+text)
	}
	for _, text := range []string{"x=%00", "x=\x00", "%00=1", "x=a%00b"} {
		bad("NUL "+text, valid+"&"+text)
	}
	for _, text := range []string{"x=%ff", "x=\xff", "%ff=1", "x=%c0%80", "x=%ed%a0%80", "x=%f4%90%80%80", "x=%e4%bd"} {
		bad("not UTF-8 "+text, valid+"&"+text)
	}
	bad("UTF-16", "\xff\xfeg\x00r\x00a\x00n\x00t\x00")
	bad("semicolon", valid+";x=1")
	bad("no name", valid+"&=1")

	bad("Basic and client_secret", valid+"&client_id=probe&client_secret="+url.QueryEscape(endpointSecret))
	bad("Basic and a wrong client_secret", valid+"&client_secret=x")
	bad("Basic and another client_id", valid+"&client_id=other")
	bad("Basic and an assertion", valid+"&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer&client_assertion=x")
	bad("the Authorization header twice", valid, "Authorization", auth)
	bad("Basic and Bearer", valid, "Authorization", "Bearer x")
	add(400, "invalid_request", "Bearer and client_secret", endpointRequest("POST", path, valid+"&client_id=probe&client_secret="+url.QueryEscape(endpointSecret), "Authorization", "Bearer x"))

	unknown("no credentials", "")
	unknown("client_id alone", "&client_id=probe")
	unknown("client_secret alone", "&client_secret="+url.QueryEscape(endpointSecret))
	unknown("an empty client_secret", "&client_id=probe&client_secret=")
	unknown("a wrong client_secret", "&client_id=probe&client_secret=wrong")
	unknown("an unknown client_id", "&client_id=nobody&client_secret=wrong")
	unknown("another's client_secret", "&client_id=probe&client_secret=other-secret")
	unknown("an assertion alone", "&client_id=probe&client_assertion=x")
	for name, header := range map[string]string{
		"empty": "", "a space": " ", "the scheme alone": "Basic", "the scheme and a space": "Basic ", "not base64": "Basic !!!", "unpadded base64": strings.TrimRight(raw("probe:x"), "="),
		"trailing bits": strings.TrimSuffix(auth, "LQ==") + "LR==", "base64 with a line break": auth[:12] + "\n" + auth[12:], "base64 with a space": auth[:12] + " " + auth[12:], "no colon": raw("probe"), "a bad percent-escape in the secret": raw("probe:%zz"), "a bad percent-escape in the ID": raw("%pr:x"),
		"the secret not encoded": raw("probe:" + endpointSecret), "NUL": raw("probe:%00"), "raw NUL": raw("probe\x00:x"), "not UTF-8": raw("probe:%ff"), "raw bytes": raw("pr\xffobe:x"),
		"empty ID": raw(":x"), "empty secret": raw("probe:"), "both empty": raw(":"), "unknown": endpointBasic("nobody", "wrong"), "wrong secret": endpointBasic("probe", "wrong"),
		"another case": endpointBasic("Probe", endpointSecret), "a space after the ID": endpointBasic("probe ", endpointSecret), "a prefix": endpointBasic("probe", endpointSecret[:10]), "a longer secret": endpointBasic("probe", endpointSecret+"x"),
		"another's secret": endpointBasic("probe", "other-secret"), "Bearer": "Bearer x", "Digest": `Digest username="probe"`, "no scheme": strings.TrimPrefix(auth, "Basic "), "a tab": "Basic\t" + strings.TrimPrefix(auth, "Basic "),
		"two in one": auth + ", " + auth, "very long": endpointBasic("probe", strings.Repeat("x", 1<<16)),
	} {
		unknown("Authorization: "+name, "", "Authorization", header)
	}
	unknown("a wrong Basic with the right client_id", "&client_id=probe", "Authorization", endpointBasic("probe", "wrong"))
	return rows
}

type endpointEndless struct{}

func (endpointEndless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// endpointCheckMalformed sends all malformed requests to one endpoint.
func endpointCheckMalformed(t *testing.T, w *endpointWorld, path, valid string) {
	t.Helper()
	uniform := map[string]string{}
	for _, row := range endpointMalformed(path, valid) {
		t.Run(row.name, func(t *testing.T) {
			rec := w.do(row.r)
			description := endpointRefused(t, rec, row.status, row.code)
			if row.status == 405 {
				require.Equal(t, "POST", rec.Header().Get("Allow"))
			}
			if row.status == 401 { // P10: nobody learns which clients there are
				uniform[description+fmt.Sprint(rec.Header())] = row.name
			}
		})
	}
	require.Len(t, uniform, 1)
	require.Empty(t, w.logged())
}

// endpointCheckTaken sends the valid request in all the ways in which it must be taken; valid makes a new body for each.
func endpointCheckTaken(t *testing.T, w *endpointWorld, path string, valid func() string) {
	t.Helper()
	auth := endpointBasic("probe", endpointSecret)
	body := "&client_id=probe&client_secret=" + url.QueryEscape(endpointSecret)
	token68 := strings.TrimPrefix(auth, "Basic ")
	everyByte := "Basic " + base64.StdEncoding.EncodeToString([]byte("%70%72%6f%62%65:%73%33%63%72%3A%74%20%2b%25%26%2D"))
	for name, r := range map[string]*http.Request{
		"Basic":                        endpointRequest("POST", path, valid(), "Authorization", auth),
		"basic":                        endpointRequest("POST", path, valid(), "Authorization", "basic "+token68),
		"BASIC and more spaces":        endpointRequest("POST", path, valid(), "Authorization", "BASIC   "+token68),
		"every byte percent-encoded":   endpointRequest("POST", path, valid(), "Authorization", everyByte),
		"a plain colon in the secret":  endpointRequest("POST", path, valid(), "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("probe:s3cr:t+%2b%25%26-"))),
		"Basic and the same client_id": endpointRequest("POST", path, valid()+"&client_id=probe", "Authorization", auth),
		"Basic and no client_secret":   endpointRequest("POST", path, valid()+"&client_id=&client_secret=", "Authorization", auth),
		"in the body":                  endpointRequest("POST", path, valid()+body),
		"with unknown parameters":      endpointRequest("POST", path, valid()+body+"&x=1&y=&request=https%3A%2F%2Fa"),
		"with empty pairs":             endpointRequest("POST", path, "&"+valid()+"&&"+body+"&"),
	} {
		t.Run(name, func(t *testing.T) {
			rec := w.do(r)
			require.Equal(t, http.StatusOK, rec.Code, rec.Body)
			require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
		})
	}
	for _, media := range []string{"application/x-www-form-urlencoded; charset=UTF-8", "application/x-www-form-urlencoded;charset=utf-8", "APPLICATION/x-www-form-URLENCODED"} {
		t.Run(media, func(t *testing.T) {
			r := endpointRequest("POST", path, valid(), "Authorization", auth)
			r.Header.Set("Content-Type", media)
			require.Equal(t, http.StatusOK, w.do(r).Code)
		})
	}
	t.Run("form parsed by a middleware", func(t *testing.T) {
		r := endpointRequest("POST", path, valid(), "Authorization", auth)
		require.NoError(t, r.ParseForm())
		require.Equal(t, http.StatusOK, w.do(r).Code)
		r = endpointRequest("POST", path, valid()+"&x=1&x=2", "Authorization", auth)
		require.NoError(t, r.ParseForm())
		endpointRefused(t, w.do(r), 400, "invalid_request")
		r = endpointRequest("POST", path, valid()+"&x=%00", "Authorization", auth)
		require.NoError(t, r.ParseForm())
		endpointRefused(t, w.do(r), 400, "invalid_request")
	})
}

func TestClientsNew(t *testing.T) {
	_, err := authz.NewClients([]authz.App{
		{ID: "", Secret: grant.NewSecret("12345678")},
		{ID: "a b", Secret: grant.NewSecret("12345678")},
		{ID: strings.Repeat("a", 65), Secret: grant.NewSecret("12345678")},
		{ID: "none"},
		{ID: "short", Secret: grant.NewSecret("1234567")},
		{ID: "long", Secret: grant.NewSecret(strings.Repeat("x", 257))},
		{ID: "binary", Secret: grant.NewSecret("1234567\xff")},
		{ID: "nul", Secret: grant.NewSecret("1234567\x00")},
		{ID: "twice", Secret: grant.NewSecret("12345678")},
		{ID: "twice", Secret: grant.NewSecret("87654321")},
	})
	require.Error(t, err)
	for _, want := range []string{`app "": an ID`, `app "a b": an ID`, `"aaaa`, `"none": Secret has 0`, `"short": Secret has 7`, `"long": Secret has 257`, `"binary": Secret is not text`, `"nul": Secret is not text`, `"twice" is there twice`} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "1234567")

	none, err := authz.NewClients(nil)
	require.NoError(t, err)
	_, err = none.Authenticate(endpointRequest("POST", "/", "", "Authorization", endpointBasic("probe", endpointSecret)))
	require.Error(t, err)
}

func TestClientsAuthenticate(t *testing.T) {
	apps := endpointApps()
	apps[0].WebhookSecret = grant.NewSecret("whsec_x")
	clients, err := authz.NewClients(apps)
	require.NoError(t, err)
	apps[0].Actions[0] = "changed.later"

	r := endpointRequest("POST", "/", "grant_type=x&client_id=probe&client_secret="+url.QueryEscape(endpointSecret))
	app, err := clients.Authenticate(r)
	require.NoError(t, err)
	require.Equal(t, "probe", app.ID)
	require.Equal(t, []string{"message.write", "member.read"}, app.Actions)
	require.True(t, app.Secret.IsZero())
	require.True(t, app.WebhookSecret.IsZero())
	require.Equal(t, "x", r.PostForm.Get("grant_type"), "the form is left for the caller")
	require.Equal(t, "x", r.FormValue("grant_type"))
	again, err := clients.Authenticate(r)
	require.NoError(t, err)
	require.Equal(t, app, again)

	get := httptest.NewRequest("GET", "/", nil)
	get.Header.Set("Authorization", endpointBasic("rs", "rs-secret"))
	app, err = clients.Authenticate(get)
	require.NoError(t, err)
	require.True(t, app.Introspect)

	_, err = clients.Authenticate(httptest.NewRequest("GET", "/?client_id=probe&client_secret="+url.QueryEscape(endpointSecret), nil))
	require.Error(t, err)
	require.NotErrorIs(t, err, authz.ErrInvalidRequest)
	_, err = clients.Authenticate(httptest.NewRequest("POST", "/", nil))
	require.ErrorIs(t, err, authz.ErrInvalidRequest)

	// P6: whoever dumps the clients sees no secret.
	require.NotContains(t, fmt.Sprintf("%+v %#v", clients, clients), endpointSecret)
}

func FuzzClientsAuthenticate(f *testing.F) {
	clients, err := authz.NewClients(endpointApps())
	require.NoError(f, err)
	f.Add(endpointBasic("probe", endpointSecret), "a=1&b=%20+&c")
	f.Add("Basic !!!", "a=%zz")
	f.Add("", "client_id=other&client_secret=other-secret")
	f.Add("Bearer x", "a=1&a=2;b=%00&%ff=")
	f.Fuzz(func(t *testing.T, header, body string) {
		r := &http.Request{Method: "POST", URL: &url.URL{Path: "/"}, Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
			Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		app, err := clients.Authenticate(r)
		if r.PostForm != nil {
			// What was taken is what net/url reads, and is clean.
			same, err := url.ParseQuery(body)
			require.NoError(t, err)
			require.Equal(t, same, r.PostForm)
			for name, values := range r.PostForm {
				require.Len(t, values, 1)
				require.True(t, utf8.ValidString(name+values[0]) && !strings.ContainsRune(name+values[0], 0))
			}
		}
		if err != nil {
			require.Nil(t, app)
			return
		}
		id, secret := r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
		if header != "" {
			require.Empty(t, secret)
			var ok bool
			rawID, rawSecret, ok := r.BasicAuth()
			require.True(t, ok)
			id, err = url.QueryUnescape(rawID)
			require.NoError(t, err)
			secret, err = url.QueryUnescape(rawSecret)
			require.NoError(t, err)
		}
		require.Equal(t, app.ID, id)
		for _, a := range endpointApps() {
			if a.ID == id {
				require.Equal(t, a.Secret.Reveal(), secret)
			}
		}
	})
}
