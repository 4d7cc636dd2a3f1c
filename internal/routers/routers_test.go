// Package routers shows that behest can be mounted in the routers people use, beside pages that match almost everything: the whole story
// over HTTP, once for each router. The functions named …PathValues are what a host with that router needs before Require, no more.
package routers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// ChiPathValues: chi sets path values by itself, but leaves them encoded when the path has an unusual encoding.
// Use it behind the routing: r.With(ChiPathValues).
func ChiPathValues(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		params := chi.RouteContext(r.Context()).URLParams
		for i, name := range params.Keys {
			r.SetPathValue(name, decoded(r, params.Values[i]))
		}
		next.ServeHTTP(w, r)
	})
}

// EchoPathValues is Echo middleware: e.Use(EchoPathValues).
func EchoPathValues(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		for _, name := range c.ParamNames() {
			c.Request().SetPathValue(name, decoded(c.Request(), c.Param(name)))
		}
		return next(c)
	}
}

// decoded undoes the encoding that chi and Echo leave in a parameter: they match RawPath where there is one, else Path, which is decoded
// already. To decode that again would make "50%41" of one group into "50A" of another.
func decoded(r *http.Request, value string) string {
	if r.URL.RawPath == "" {
		return value
	}
	value, err := url.PathUnescape(value)
	if err != nil {
		return "" // Require answers 500 to an empty value
	}
	return value
}

// GinPathValues is Gin middleware: engine.Use(GinPathValues). Gin matches the decoded path unless told otherwise; leave UseRawPath and UseEscapedPath off,
// since it decodes those values like a query, where "+" is a space.
func GinPathValues(c *gin.Context) {
	for _, p := range c.Params {
		c.Request.SetPathValue(p.Key, p.Value)
	}
}

// GorillaPathValues is gorilla/mux middleware: r.Use(GorillaPathValues). gorilla/mux matches the decoded path; leave UseEncodedPath off.
func GorillaPathValues(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range mux.Vars(r) {
			r.SetPathValue(name, value)
		}
		next.ServeHTTP(w, r)
	})
}

// A host is a social server to be: its pages, and what its router is to lead to.
type host struct {
	az   *authz.Server
	page http.Handler // answers 299, which nothing else does
	post http.Handler // behind Require
	lost http.Handler // behind the same Require, but on a route without the path value
}

// routers are the hosts; slash tells whether a path value may hold an encoded slash.
var routers = []struct {
	name  string
	slash bool
	mount func(h host) http.Handler
}{
	{"ServeMux beside GET pages", true, func(h host) http.Handler {
		m := http.NewServeMux()
		m.Handle("GET /", h.page)
		m.Handle("GET /{user}/{repo}", h.page)
		h.az.Routes(m.Handle)
		m.Handle("POST /groups/{group}/messages", h.post)
		m.Handle("POST /lobby/messages", h.lost)
		return m
	}},
	// A pattern of its own: "GET /" and "/{user}/{repo}" cannot stand in one ServeMux.
	{"ServeMux beside pages for all methods", true, func(h host) http.Handler {
		m := http.NewServeMux()
		m.Handle("/", h.page)
		m.Handle("/{user}/{repo}", h.page)
		h.az.Routes(m.Handle)
		m.Handle("POST /groups/{group}/messages", h.post)
		m.Handle("POST /lobby/messages", h.lost)
		return m
	}},
	{"chi", true, func(h host) http.Handler {
		r := chi.NewRouter()
		r.Method(http.MethodGet, "/*", h.page)
		r.Method(http.MethodGet, "/{user}/{repo}", h.page)
		r.Handle("/{user}/{repo}", h.page)
		h.az.Routes(r.Handle)
		r.With(ChiPathValues).Method(http.MethodPost, "/groups/{group}/messages", h.post)
		r.With(ChiPathValues).Method(http.MethodPost, "/lobby/messages", h.lost)
		return r
	}},
	{"Echo", true, func(h host) http.Handler {
		e := echo.New()
		e.Use(EchoPathValues)
		e.GET("/*", echo.WrapHandler(h.page))
		e.GET("/:user/:repo", echo.WrapHandler(h.page))
		e.Any("/:user/:repo", echo.WrapHandler(h.page))
		h.az.Routes(func(pattern string, h http.Handler) {
			method, path, _ := strings.Cut(pattern, " ")
			e.Add(method, path, echo.WrapHandler(h))
		})
		e.POST("/groups/:group/messages", echo.WrapHandler(h.post))
		e.POST("/lobby/messages", echo.WrapHandler(h.lost))
		return e
	}},
	{"Gin", false, func(h host) http.Handler {
		gin.SetMode(gin.TestMode)
		g := gin.New()
		g.Use(GinPathValues)
		g.GET("/", gin.WrapH(h.page))
		g.Any("/:user/:repo", gin.WrapH(h.page)) // GET included
		h.az.Routes(func(pattern string, h http.Handler) {
			method, path, _ := strings.Cut(pattern, " ")
			g.Handle(method, path, gin.WrapH(h))
		})
		g.POST("/groups/:group/messages", gin.WrapH(h.post))
		g.POST("/lobby/messages", gin.WrapH(h.lost))
		return g
	}},
	{"gorilla/mux", false, func(h host) http.Handler {
		r := mux.NewRouter()
		r.Use(GorillaPathValues)
		// gorilla/mux takes the first route that matches: what is exact comes before the pages.
		h.az.Routes(func(pattern string, h http.Handler) {
			method, path, _ := strings.Cut(pattern, " ")
			r.Handle(path, h).Methods(method)
		})
		r.Handle("/groups/{group}/messages", h.post).Methods(http.MethodPost)
		r.Handle("/lobby/messages", h.lost).Methods(http.MethodPost)
		r.Handle("/{user}/{repo}", h.page).Methods(http.MethodGet)
		r.Handle("/{user}/{repo}", h.page)
		r.PathPrefix("/").Handler(h.page).Methods(http.MethodGet)
		return r
	}},
}

const (
	pageStatus = 299
	secret     = "s3cr:t +%&-"
)

func TestStory(t *testing.T) {
	for _, router := range routers {
		t.Run(router.name, func(t *testing.T) {
			s := start(t, router.mount)

			// The host's own pages are where they were.
			for _, path := range []string{"/", "/zhang-san/reading"} {
				require.Equal(t, pageStatus, s.do(http.MethodGet, path, nil, nil).status, path)
			}
			// And do not answer for the endpoints.
			for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete} {
				got := s.do(method, "/oauth2/token", nil, nil)
				require.Equal(t, http.StatusMethodNotAllowed, got.status, method)
				require.Equal(t, http.MethodPost, got.header.Get("Allow"), method)
			}
			meta := s.do(http.MethodGet, "/.well-known/oauth-authorization-server", nil, nil)
			require.Equal(t, http.StatusOK, meta.status)
			require.Equal(t, s.url, meta.json["issuer"])
			require.Equal(t, s.url+"/oauth2/token", meta.json["token_endpoint"])

			// The user mentions the app, the app polls, redeems, and writes in that user's name.
			token := s.token(t, "42")
			got := s.post("/groups/42/messages", token)
			require.Equal(t, http.StatusCreated, got.status, got.text)
			require.Equal(t, "zhang-san via bookbot in group:42", got.text)

			got = s.post("/groups/7/messages", token)
			require.Equal(t, http.StatusForbidden, got.status)
			require.Equal(t, "wrong_domain", got.json["error_reason"])

			got = s.post("/groups/42/messages", "bhst_forged")
			require.Equal(t, http.StatusUnauthorized, got.status)
			require.Equal(t, "invalid_token", got.json["error"])
			require.NotContains(t, got.json, "error_reason")

			got = s.post("/groups/42/messages", "")
			require.Equal(t, http.StatusUnauthorized, got.status)
			require.NotContains(t, got.header.Get("WWW-Authenticate"), "error=") // RFC 6750 §3.1

			require.Equal(t, http.StatusInternalServerError, s.post("/lobby/messages", token).status, "a route without the path value")

			revoked := s.do(http.MethodPost, "/oauth2/revoke", url.Values{"token": {token}}, s.app)
			require.Equal(t, http.StatusOK, revoked.status)
			got = s.post("/groups/42/messages", token)
			require.Equal(t, http.StatusUnauthorized, got.status)
			require.Equal(t, "revoked", got.json["error_reason"])
		})
	}
}

// A path value means the same group in every router, however it is encoded; where a router cannot carry it, there is no route.
func TestPathValues(t *testing.T) {
	cases := []struct {
		id, path, want string // want: the domain's text; empty: the token of another group
	}{
		{"42", "/groups/%34%32/messages", "group:42"},
		{"li si", "/groups/li%20si/messages", "group:li%20si"},
		{"a+b", "/groups/a+b/messages", "group:a%2Bb"},
		{"a+b", "/groups/a%2Bb/messages", "group:a%2Bb"},
		{"读书", "/groups/%E8%AF%BB%E4%B9%A6/messages", "group:%E8%AF%BB%E4%B9%A6"},
		{"50%41", "/groups/50%2541/messages", "group:50%2541"},
		{"50A", "/groups/50%2541/messages", ""},
		{"50%41", "/groups/50%41/messages", ""},
		{"a/b", "/groups/a%2Fb/messages", "group:a%2Fb"},
		{"a", "/groups/a%2Fb/messages", ""},
		{"b", "/groups/a%2Fb/messages", ""},
	}
	for _, router := range routers {
		t.Run(router.name, func(t *testing.T) {
			s := start(t, router.mount)
			for _, c := range cases {
				got := s.post(c.path, s.token(t, c.id))
				switch {
				case strings.Contains(c.path, "%2F") && !router.slash:
					require.Contains(t, []int{http.StatusNotFound, http.StatusMethodNotAllowed}, got.status, "%q %s", c.id, c.path)
				case c.want == "":
					require.Equal(t, http.StatusForbidden, got.status, "%q %s", c.id, c.path)
				default:
					require.Equal(t, http.StatusCreated, got.status, "%q %s: %s", c.id, c.path, got.text)
					require.Equal(t, "zhang-san via bookbot in "+c.want, got.text)
				}
			}
		})
	}
}

// A site is a host that listens, and the requests of the test to it.
type site struct {
	t      *testing.T
	url    string
	az     *authz.Server
	app    *url.Userinfo
	serial int
}

func start(t *testing.T, mount func(host) http.Handler) *site {
	t.Helper()
	web := httptest.NewUnstartedServer(nil)
	s := &site{t: t, url: "http://" + web.Listener.Addr().String(), app: url.UserPassword("bookbot", secret)}
	az, err := authz.New(authz.Config{
		Issuer: s.url,
		Permit: func(context.Context, grant.Access) error { return nil },
		Apps:   []authz.App{{ID: "bookbot", Name: "BookBot", Secret: grant.NewSecret(secret), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"},
			For: 10 * time.Minute, Uses: 3, Deliver: grant.Poll}},
	})
	require.NoError(t, err)
	s.az = az
	act := func(w http.ResponseWriter, r *http.Request) {
		d, ok := authz.FromContext(r.Context())
		if !ok {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "%s via %s in %s", d.Account, d.App, d.Domain)
	}
	guarded := func() http.Handler { return az.Require("group:{group}/message.write")(http.HandlerFunc(act)) }
	web.Config.Handler = mount(host{
		az:   az,
		page: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(pageStatus) }),
		post: guarded(),
		lost: guarded(),
	})
	web.Start()
	t.Cleanup(web.Close)
	return s
}

// token goes the app's whole way over HTTP, for a mention in that group.
func (s *site) token(t *testing.T, group string) string {
	t.Helper()
	domain, err := scope.Domain{}.Child("group", group)
	require.NoError(t, err)
	s.serial++
	_, err = s.az.Emit(t.Context(), grant.Event{ID: fmt.Sprint("message-", s.serial), Operation: grant.Mention, Account: "zhang-san",
		Domain: domain, App: "bookbot", Text: "@bookbot reserve Dune"})
	require.NoError(t, err)

	polled := s.do(http.MethodGet, "/oauth2/grants", nil, s.app)
	require.Equal(t, http.StatusOK, polled.status, polled.text)
	var waiting struct {
		Grants []struct{ Code, Scope string }
	}
	require.NoError(t, json.Unmarshal([]byte(polled.text), &waiting))
	require.Len(t, waiting.Grants, 1)
	require.Equal(t, domain.String()+"/message.write", waiting.Grants[0].Scope)

	redeemed := s.do(http.MethodPost, "/oauth2/token", url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {waiting.Grants[0].Code}}, s.app)
	require.Equal(t, http.StatusOK, redeemed.status, redeemed.text)
	token, _ := redeemed.json["access_token"].(string)
	require.NotEmpty(t, token)
	return token
}

type answer struct {
	status int
	header http.Header
	text   string
	json   map[string]any // nil if it is not an object
}

// post sends the app's request to act as the user.
func (s *site) post(path, token string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url+path, strings.NewReader(`{"text":"reserved"}`))
	require.NoError(s.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return s.send(req)
}

// do sends a form, as the client if there is one.
func (s *site) do(method, path string, form url.Values, client *url.Userinfo) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(form.Encode()))
	require.NoError(s.t, err)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if client != nil {
		// RFC 6749 §2.3.1: both are form-encoded before they go into Basic.
		password, _ := client.Password()
		req.SetBasicAuth(url.QueryEscape(client.Username()), url.QueryEscape(password))
	}
	return s.send(req)
}

func (s *site) send(req *http.Request) answer {
	s.t.Helper()
	client := http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	require.NoError(s.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	require.NoError(s.t, err)
	a := answer{status: res.StatusCode, header: res.Header, text: string(body)}
	_ = json.Unmarshal(body, &a.json) // not every answer is JSON
	return a
}
