package authz_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// A guarded is a server, a token of ten uses in a domain, and what counts them.
type guarded struct {
	*authz.Server
	t     *testing.T
	store *spyStore
	log   lockedBuffer
	token string
	made  int
}

func newGuarded(t *testing.T, domain scope.Domain, change ...func(*authz.Config)) *guarded {
	t.Helper()
	g := &guarded{t: t}
	servers, mem := bubble(t, 1, append([]func(*authz.Config){func(c *authz.Config) {
		c.Log = slog.New(slog.NewTextHandler(&g.log, nil))
		c.Apps[0].Actions = []string{"message.write", "member.read"}
		c.Triggers[0].In, c.Triggers[0].Uses = "*", 10
	}}, change...)...)
	g.Server, g.store = servers[0], mem
	g.token = g.in(domain)
	return g
}

// in makes a token in a domain.
func (g *guarded) in(domain scope.Domain) string {
	g.t.Helper()
	g.made++
	issued, err := g.Emit(g.t.Context(), grant.Event{ID: fmt.Sprintf("m%d in %.200s", g.made, domain), Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: domain})
	require.NoError(g.t, err)
	require.Len(g.t, issued, 1)
	_, token, err := g.Engine().Redeem(g.t.Context(), "bookbot", issued[0].Code)
	require.NoError(g.t, err)
	return token.Reveal()
}

func (g *guarded) left(token string) int {
	g.t.Helper()
	d, err := g.Engine().Inspect(g.t.Context(), grant.NewSecret(token))
	require.NoError(g.t, err)
	return d.Left
}

func (g *guarded) request(method, path string) *http.Request {
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Authorization", "Bearer "+g.token)
	return r
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

var group42 = scope.MustDomain("group:42")

func fine(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusCreated) }

func TestRequireBearer(t *testing.T) {
	g := newGuarded(t, group42, func(c *authz.Config) { c.Triggers[0].Uses = 100 })
	h := g.Require("group:42/message.write")(http.HandlerFunc(fine))
	const none, bad = `{"error_description":"a delegation token is required"}`, `{"error":"invalid_token","error_description":"the token is not valid"}`
	for name, row := range map[string]struct {
		header []string
		status int
		body   string
	}{
		"as it should be":    {[]string{"Bearer " + g.token}, 201, ""},
		"lower case":         {[]string{"bearer " + g.token}, 201, ""},
		"upper case":         {[]string{"BEARER " + g.token}, 201, ""},
		"more spaces":        {[]string{"Bearer    " + g.token}, 201, ""},
		"no header":          {nil, 401, none},
		"empty":              {[]string{""}, 401, none},
		"a scheme alone":     {[]string{"Bearer"}, 401, none},
		"a scheme and space": {[]string{"Bearer "}, 401, none},
		"spaces":             {[]string{"Bearer     "}, 401, bad},
		"Basic":              {[]string{"Basic Ym9va2JvdDpib29rLXNlY3JldA=="}, 401, none},
		"another scheme":     {[]string{"Bearerx " + g.token}, 401, none},
		"another, as long":   {[]string{"DPoP2 " + g.token}, 401, none},
		"no scheme":          {[]string{g.token}, 401, none},
		"a tab":              {[]string{"Bearer\t" + g.token}, 401, none},
		"space before":       {[]string{" Bearer " + g.token}, 401, none},
		"space after":        {[]string{"Bearer " + g.token + " "}, 401, bad},
		"two tokens":         {[]string{"Bearer " + g.token + ", Bearer " + g.token}, 401, bad},
		"quoted":             {[]string{`Bearer "` + g.token + `"`}, 401, bad},
		"two headers":        {[]string{"Bearer " + g.token, "Bearer " + g.token}, 400, `{"error":"invalid_request","error_description":"more than one Authorization header"}`},
		"Basic as well":      {[]string{"Basic eDp5", "Bearer " + g.token}, 400, `{"error":"invalid_request","error_description":"more than one Authorization header"}`},
		"a megabyte":         {[]string{"Bearer bhst_" + strings.Repeat("A", 1<<20)}, 401, bad},
		"a megabyte more":    {[]string{"Bearer " + g.token + strings.Repeat("A", 1<<20)}, 401, bad},
		"NUL":                {[]string{"Bearer " + g.token + "\x00"}, 401, bad},
		"NUL first":          {[]string{"Bearer \x00" + g.token}, 401, bad},
		"not UTF-8":          {[]string{"Bearer \xff\xfe"}, 401, bad},
		"line breaks":        {[]string{"Bearer " + g.token[:9] + "\r\n" + g.token[9:]}, 401, bad},
	} {
		t.Run(name, func(t *testing.T) {
			before := g.left(g.token)
			r := httptest.NewRequest("POST", "/?access_token="+url.QueryEscape(g.token), strings.NewReader("access_token="+g.token))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded") // RFC 6750 §2.2 and §2.3: ways that are not taken
			r.AddCookie(&http.Cookie{Name: "token", Value: g.token})
			if row.header != nil {
				r.Header["Authorization"] = row.header
			}
			rec := serve(h, r)
			require.Equal(t, row.status, rec.Code, rec.Body)
			if row.body != "" {
				require.Equal(t, row.body+"\n", rec.Body.String())
			}
			if row.status == 401 {
				challenge := `Bearer realm="https://social.example"`
				if row.body == bad {
					challenge += `, error="invalid_token", error_description="the token is not valid"`
				}
				challenge += `, resource_metadata="https://social.example/.well-known/oauth-protected-resource"`
				require.Equal(t, []string{challenge}, rec.Header()["Www-Authenticate"])
			}
			spent := 0
			if row.status == 201 {
				spent = 1
			}
			require.Equal(t, before-spent, g.left(g.token))
		})
	}
	require.Empty(t, g.log.String())

	// What a real server makes of it, byte for byte.
	web := httptest.NewServer(h)
	defer web.Close()
	for header, status := range map[string]string{
		"Authorization: Bearer " + g.token:                         "201",
		"authorization:bearer  " + g.token + "  ":                  "201",
		"Authorization: Bearer " + g.token + "\x00":                "400",
		"Authorization: Bearer " + g.token[:20] + "\n" + g.token:   "400",
		"Authorization: Bearer " + strings.Repeat("A", 900<<10):    "401",
		"Authorization: Bearer " + strings.Repeat("A", 1100<<10):   "431",
		"Authorization: Bearer " + g.token + "\r\nAuthorization: ": "400",
	} {
		conn, err := net.Dial("tcp", web.Listener.Addr().String())
		require.NoError(t, err)
		go func() {
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\n"+header+"\r\nContent-Length: 0\r\n\r\n")
		}()
		line, err := bufio.NewReader(conn).ReadString('\n')
		require.NoError(t, err)
		require.Contains(t, line, " "+status+" ", "%.60q", header)
		_ = conn.Close()
	}
}

func TestRequirePattern(t *testing.T) {
	g := newGuarded(t, group42)
	for _, pattern := range []string{"", "*", "group:*", "group:{group}", "group:{group}/", "group:{}/message.write", "group:{group}/Message", "group:*/message.write",
		"group:{group}/thread:{group}/message.write", "message.write", "group/message.write", "group:{a b}/x", strings.Repeat("a:b/", 9) + "x"} {
		require.Panics(t, func() { g.Require(pattern) }, pattern)
	}
	// Without a name in it, the pattern is one scope.
	require.Equal(t, 201, serve(g.Require("group:42/message.write")(http.HandlerFunc(fine)), g.request("POST", "/")).Code)
	require.Equal(t, 403, serve(g.Require("group:43/message.write")(http.HandlerFunc(fine)), g.request("POST", "/")).Code)
	require.Equal(t, 403, serve(g.Require("group:42/no.such.action")(http.HandlerFunc(fine)), g.request("POST", "/")).Code)
}

// Whatever bytes are in a path, the domain is the one that they name, and no other.
func TestRequirePath(t *testing.T) {
	g := newGuarded(t, group42)
	var got *authz.Delegation
	mux := http.NewServeMux()
	mux.Handle("POST /groups/{group}/messages", g.Require("group:{group}/message.write")(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		got, _ = authz.FromContext(r.Context())
		if r.PathValue("group") != got.Domain.ID() {
			t.Errorf("%q and %q", r.PathValue("group"), got.Domain.ID())
		}
		rw.WriteHeader(201)
	})))
	long := strings.Repeat("x", 256)
	for _, raw := range []string{"42", "a b", "a/b", "42/thread:1", "..", "%41", "*", "{group}", "\x00", "\xff\xfe", "\n", "日本", "a:b", "a.b~c_d-e", `"quoted"`, "<script>", ";", "&", "#", "?", long, strings.Repeat("/", 256)} {
		domain, err := (scope.Domain{}).Child("group", raw)
		require.NoError(t, err)
		r := g.request("POST", "/groups/"+url.PathEscape(raw)+"/messages")
		if raw == ".." {
			r = g.request("POST", "/groups/%2e%2e/messages")
		}
		if raw != "42" {
			require.Equal(t, "wrong_domain", reasonOf(t, serve(mux, r)), "%q with a token for group 42", raw)
		}
		r.Header.Set("Authorization", "Bearer "+g.in(domain))
		rec := serve(mux, r)
		require.Equal(t, 201, rec.Code, "%q: %s", raw, rec.Body)
		require.Equal(t, domain, got.Domain)
		require.Equal(t, raw, got.Domain.ID())
	}
	// Spelled in another way, it is the same domain.
	for _, path := range []string{"/groups/%34%32/messages", "/groups/4%32/messages"} {
		require.Equal(t, 201, serve(mux, g.request("POST", path)).Code)
	}
	// What can be no ID names nothing, and a token is spent by none of it.
	before := g.left(g.token)
	for _, path := range []string{"/groups/" + long + "x/messages", "/groups/" + strings.Repeat("%00", 257) + "/messages", "/groups/" + strings.Repeat("x", 1<<20) + "/messages"} {
		rec := serve(mux, g.request("POST", path))
		require.Equal(t, 404, rec.Code)
		require.JSONEq(t, `{"error":"invalid_request","error_description":"no such resource"}`, rec.Body.String())
	}
	deep := g.Require("group:{a}/thread:{b}/post:{c}/line:{d}/message.write")(http.HandlerFunc(fine))
	r := g.request("POST", "/")
	for _, name := range []string{"a", "b", "c", "d"} {
		r.SetPathValue(name, strings.Repeat("\xff", 256)) // each is an ID, together they are too long
	}
	require.Equal(t, 404, serve(deep, r).Code)
	require.Equal(t, before, g.left(g.token))
	require.Empty(t, g.log.String())
}

func reasonOf(t *testing.T, rec *httptest.ResponseRecorder) string {
	t.Helper()
	_, rest, _ := strings.Cut(rec.Body.String(), `"error_reason":"`)
	reason, _, _ := strings.Cut(rest, `"`)
	return reason
}

// A route without the value is a mistake in the program: told at once, spending nothing, never an empty domain.
func TestRequireMissingValue(t *testing.T) {
	g := newGuarded(t, group42)
	for _, set := range []bool{false, true} {
		r := g.request("POST", "/")
		if set {
			r.SetPathValue("group", "")
		}
		rec := serve(g.Require("group:{group}/message.write")(http.HandlerFunc(fine)), r)
		require.Equal(t, 500, rec.Code)
		require.JSONEq(t, `{"error":"server_error","error_description":"the server could not decide"}`, rec.Body.String())
	}
	require.Contains(t, g.log.String(), "{group}")
	require.Equal(t, 10, g.left(g.token))
	var quiet http.Handler = (&authz.Verifier{Engine: g.Engine()}).Require("group:{group}/message.write")(http.HandlerFunc(fine)) // no log, no realm
	require.Equal(t, 500, serve(quiet, g.request("POST", "/")).Code)
	require.Equal(t, []string{"Bearer"}, serve(quiet, httptest.NewRequest("POST", "/", nil)).Header()["Www-Authenticate"])
}

func TestRequireMethods(t *testing.T) {
	g := newGuarded(t, group42)
	mux := http.NewServeMux()
	mux.Handle("GET /", g.Require("group:42/message.write")(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "text") })))
	web := httptest.NewServer(mux)
	defer web.Close()
	head := func(token string) *http.Response {
		req, err := http.NewRequest("HEAD", web.URL, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Empty(t, body)
		return res
	}
	require.Equal(t, 200, head(g.token).StatusCode)
	require.Equal(t, 9, g.left(g.token), "HEAD costs what GET costs")
	res := head("bhst_forged")
	require.Equal(t, 401, res.StatusCode)
	require.Contains(t, res.Header.Get("WWW-Authenticate"), "invalid_token")
}

// What was spent stays spent, whatever the handler does; what was refused was not.
func TestRequireSpends(t *testing.T) {
	g := newGuarded(t, group42)
	for n, then := range []http.HandlerFunc{
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) },
		func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(404) },
	} {
		func() {
			defer func() { _ = recover() }()
			serve(g.Require("group:42/message.write")(then), g.request("POST", "/"))
		}()
		require.Equal(t, 9-n, g.left(g.token))
	}

	h := g.Require("group:42/message.write")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler runs") }))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, 503, serve(h, g.request("POST", "/").WithContext(ctx)).Code)
	require.Empty(t, g.log.String(), "a client that has gone is nobody's trouble")
	ctx, cancel = context.WithTimeout(t.Context(), 0)
	defer cancel()
	require.Equal(t, 503, serve(h, g.request("POST", "/").WithContext(ctx)).Code)
	require.Contains(t, g.log.String(), "deadline exceeded", "a client whose time is up is still there, and the host asks why")
	g.store.fail(errors.New("disk on fire"))
	rec := serve(h, g.request("POST", "/"))
	require.Equal(t, 503, rec.Code)
	require.Equal(t, "1", rec.Header().Get("Retry-After"))
	require.NotContains(t, rec.Body.String(), "disk")
	require.Contains(t, g.log.String(), "disk on fire")
	g.store.fail(nil)
	require.Equal(t, 7, g.left(g.token))
}

func TestRequirePermit(t *testing.T) {
	var answer error
	var asked []grant.Access
	g := newGuarded(t, group42, func(c *authz.Config) {
		c.Permit = func(_ context.Context, a grant.Access) error {
			asked = append(asked, a)
			return answer
		}
	})
	h := g.Require("group:42/thread:{thread}/message.write")(http.HandlerFunc(fine))
	call := func() *httptest.ResponseRecorder {
		r := g.request("POST", "/")
		r.SetPathValue("thread", "7")
		return serve(h, r)
	}
	before := g.store.calls.Load()
	for err, want := range map[error]string{
		errors.New("disk on fire"):                                   "503 ",
		context.DeadlineExceeded:                                     "503 ",
		grant.ErrDenied:                                              "403 rights_changed",
		fmt.Errorf("muted: %w", grant.ErrDenied):                     "403 rights_changed",
		errors.Join(errors.New("a member no more"), grant.ErrDenied): "403 rights_changed",
	} {
		answer = err
		rec := call()
		require.Equal(t, want, fmt.Sprint(rec.Code, " ", reasonOf(t, rec)), "%v", err)
		require.NotContains(t, rec.Body.String()+rec.Header().Get("WWW-Authenticate"), "member no more")
	}
	require.Equal(t, before, g.store.calls.Load(), "asked before anything is written")
	answer = nil
	require.Equal(t, 201, call().Code)
	d, err := g.Engine().Inspect(t.Context(), grant.NewSecret(g.token))
	require.NoError(t, err)
	require.Equal(t, grant.Access{Account: "zhang-san", App: "bookbot", Scope: scope.MustParse("group:42/thread:7/message.write"), Grant: d.Grant}, asked[len(asked)-2])
	require.Equal(t, 9, d.Left)
}

func TestRequireFunc(t *testing.T) {
	g := newGuarded(t, group42)
	var answer scope.Scope
	var fault error
	calls := 0
	h := g.RequireFunc(func(r *http.Request) (scope.Scope, error) {
		calls++
		if _, ok := authz.FromContext(r.Context()); ok {
			t.Error("a delegation before the decision")
		}
		return answer, fault
	})(http.HandlerFunc(fine))
	good := scope.MustParse("group:42/thread:1/message.write")
	for name, row := range map[string]struct {
		scope  scope.Scope
		err    error
		status int
		body   string
	}{
		"good":          {good, nil, 201, ""},
		"elsewhere":     {scope.MustParse("group:43/message.write"), nil, 403, "wrong_domain"},
		"above":         {scope.MustParse("org:1/message.write"), nil, 403, "wrong_domain"},
		"other action":  {scope.MustParse("group:42/member.read"), nil, 403, "wrong_action"},
		"malformed":     {good, fmt.Errorf("%w: no number", authz.ErrInvalidRequest), 400, `{"error":"invalid_request","error_description":"no number"}`},
		"too large":     {good, fmt.Errorf("%w: %w", authz.ErrInvalidRequest, &http.MaxBytesError{Limit: 7}), 413, `{"error":"invalid_request","error_description":"the body is larger than 7 bytes"}`},
		"wordless":      {good, authz.ErrInvalidRequest, 400, "the request is malformed"},
		"not there":     {good, fmt.Errorf("post 7: %w", fs.ErrNotExist), 404, "no such resource"},
		"a fault":       {good, errors.New("disk on fire"), 500, "server_error"},
		"no rights":     {good, grant.ErrDenied, 500, "server_error"},
		"a sentinel":    {good, grant.ErrExpired, 500, "server_error"},
		"nothing":       {scope.Scope{}, nil, 500, "server_error"},
		"nothing known": {scope.Scope{}, fs.ErrNotExist, 404, "no such resource"},
	} {
		t.Run(name, func(t *testing.T) {
			answer, fault = row.scope, row.err
			before := g.left(g.token)
			rec := serve(h, g.request("POST", "/posts/7"))
			require.Equal(t, row.status, rec.Code, rec.Body)
			require.Contains(t, rec.Body.String(), row.body)
			require.NotContains(t, rec.Body.String(), "disk")
			require.NotContains(t, rec.Body.String(), "post 7")
			if row.status == 201 {
				before--
			}
			require.Equal(t, before, g.left(g.token))
		})
	}
	require.Contains(t, g.log.String(), "disk on fire")
	require.Contains(t, g.log.String(), "neither a scope nor an error")

	before, asked := g.left(g.token), calls
	for _, header := range []string{"", "Bearer bhst_forged", "Basic x"} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Authorization", header)
		require.Equal(t, 401, serve(h, r).Code)
	}
	require.Equal(t, asked, calls, "a stranger makes the host look up nothing")
	panics := g.RequireFunc(func(*http.Request) (scope.Scope, error) { panic("boom") })(http.HandlerFunc(fine))
	require.PanicsWithValue(t, "boom", func() { serve(panics, g.request("POST", "/")) })
	require.Equal(t, before, g.left(g.token))
}

// The Delegation is the token's own, whatever else goes on at the same time, and stays so.
func TestRequireDelegation(t *testing.T) {
	g := newGuarded(t, group42)
	type held struct {
		d    *authz.Delegation
		copy authz.Delegation
	}
	tokens, kept := make([]string, 64), make([]held, 64*5)
	for i := range tokens {
		domain, err := (scope.Domain{}).Child("group", fmt.Sprint("id", i))
		require.NoError(t, err)
		tokens[i] = g.in(domain)
	}
	h := g.Require("group:{group}/message.write")(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		d, ok := authz.FromContext(r.Context())
		if !ok || d.Domain.ID() != r.PathValue("group") || d.Account != "zhang-san" || !strings.HasSuffix(d.Event, " in "+d.Domain.String()) || d.GrantedIn() != d.Domain {
			t.Errorf("%+v", d)
		}
		if inner, _ := authz.FromContext(context.WithoutCancel(r.Context())); inner != d {
			t.Error("lost on the way")
		}
		var n int
		_, _ = fmt.Sscan(r.Header.Get("X-N"), &n)
		kept[n] = held{d, *d}
	}))
	at64(func(i int) int {
		for n := range 5 {
			r := httptest.NewRequest("POST", "/", nil)
			r.SetPathValue("group", fmt.Sprint("id", i))
			r.Header.Set("X-N", fmt.Sprint(i*5+n))
			r.Header.Set("Authorization", "Bearer "+tokens[i])
			if rec := serve(h, r); rec.Code != 200 {
				t.Error(rec.Code, rec.Body)
			}
		}
		return 0
	})
	for _, k := range kept {
		require.Equal(t, k.copy, *k.d)
	}
	_, ok := authz.FromContext(t.Context())
	require.False(t, ok)
	_, ok = authz.FromContext(authz.NewContext(t.Context(), nil))
	require.False(t, ok)
	d, ok := authz.FromContext(authz.NewContext(t.Context(), kept[0].d))
	require.True(t, ok)
	require.Same(t, kept[0].d, d)

	// The context is the request's in all else.
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), http.ServerContextKey, "kept"), time.Hour)
	defer cancel()
	serve(g.Require("group:42/message.write")(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		require.Equal(t, "kept", r.Context().Value(http.ServerContextKey))
		want, _ := ctx.Deadline()
		got, _ := r.Context().Deadline()
		require.Equal(t, want, got)
		child, stop := context.WithCancel(r.Context())
		defer stop()
		cancel()
		require.ErrorIs(t, r.Context().Err(), context.Canceled)
		require.ErrorIs(t, child.Err(), context.Canceled)
	})), g.request("POST", "/").WithContext(ctx))
}
