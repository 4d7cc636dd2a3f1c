package authz

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/server"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// An AuthorizationEndpoint answers GET and POST /oauth2/authorize (RFC 6749 §3.1): with it people sign in to an app
// with their account here. That gives the app no right to do anything: see Signing in, in the package comment. As the
// SignIn of the other endpoints it is also what they know of sign-ins.
//
// GET shows a page that asks, and makes nothing; only its form, which is the page's own and nobody else's, makes a code.
// The request must have client_id, redirect_uri, exactly as registered, response_type "code", and code_challenge with
// code_challenge_method "S256" (RFC 7636); it may have state, scope ("profile", the account's own name), response_mode
// "query", and resource, which is the issuer (RFC 8707). With prompt "none" it is refused, since people are always
// asked. Other parameters are ignored, and one that is there twice is an error. The query has 8 KiB at most.
//
// As long as client_id and redirect_uri do not belong together the answer is a page; then errors go to the app as in
// RFC 6749 §4.1.2.1. All answers to the app have iss (RFC 9207).
//
// All fields but Now and Log are required. Set them before the first request.
type AuthorizationEndpoint struct {
	Engine  *grant.Engine
	Clients *Clients
	Store   store.Store  // the engine's
	Key     grant.Secret // the engine's
	Issuer  string
	// Account says who is logged in here, and LoginURL where people log in: see Config.
	Account  func(*http.Request) (string, error)
	LoginURL string
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger     // nil: nothing is logged

	once     sync.Once
	kept     *signIns
	standard *server.Server
	page     *template.Template
	style    string // how the policy names it
	failed   error
}

// signIns is nil for an endpoint that is not there.
func (e *AuthorizationEndpoint) signIns() (*signIns, error) {
	if e == nil {
		return nil, nil
	}
	e.once.Do(func() {
		if e.kept, e.failed = newSignIns(e.Engine, e.Store, e.Key, e.Now, e.Log); e.failed == nil {
			e.standard = newStandard(&manager{e.Clients, e.Store, e.Now, e.kept}, e.Engine, e.Log)
			e.page, e.failed = template.New("").Parse(authorizeHTML)
		}
		sum := sha256.Sum256([]byte(authorizeCSS))
		e.style = "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	})
	return e.kept, e.failed
}

const maxQuery = 8 << 10 // bytes

// An asked is an authorization request that has been checked as far as that its answer may go to the app.
type asked struct {
	app      *App
	redirect *url.URL
	form     url.Values
	scope    string
}

// ServeHTTP implements [http.Handler].
func (e *AuthorizationEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodGet, http.MethodHead, http.MethodPost) {
		return
	}
	ctx := r.Context()
	signIns, err := e.signIns()
	var a *asked
	if err == nil {
		a, err = e.read(r)
	}
	if err != nil {
		e.fail(ctx, w, err)
		return
	}
	if code, description := a.check(e.Issuer); code != "" {
		e.refuse(w, a, code, description)
		return
	}
	account, err := e.Account(r)
	prompt := strings.Split(a.form.Get("prompt"), " ")
	switch {
	case err != nil:
		e.fail(ctx, w, err)
		return
	case slices.Contains(prompt, "none") && account == "":
		e.refuse(w, a, "login_required", "nobody is logged in")
		return
	case slices.Contains(prompt, "none"):
		e.refuse(w, a, "interaction_required", "people are always asked")
		return
	case account == "":
		e.login(w, r)
		return
	}
	now, request := clock(e.Now), a.form.Encode()
	if r.Method != http.MethodPost {
		e.show(w, http.StatusOK, a.redirect, page{
			App: a.app.Name, Host: a.redirect.Host, Account: account, Named: a.app.RealNames || a.scope == scopeProfile,
			Token: signIns.formToken(account, request, now),
		})
		return
	}
	if err := sameOrigin(r, e.Issuer); err != nil {
		e.fail(ctx, w, err)
		return
	}
	form, err := readBody(r)
	switch {
	case err != nil:
		e.fail(ctx, w, err)
	case !signIns.checkForm(form.Get("token"), account, request, now):
		e.fail(ctx, w, errForm)
	case form.Get("answer") == "no":
		e.refuse(w, a, "access_denied", "the account does not want to")
	case form.Get("answer") != "yes":
		e.fail(ctx, w, badRequest("the form has no answer"))
	default:
		e.issue(w, r, a, account)
	}
}

// issue lets go-oauth2 ask for the code. The way back to the app is not its own: see newStandard.
func (e *AuthorizationEndpoint) issue(w http.ResponseWriter, r *http.Request, a *asked, account string) {
	ctx := r.Context()
	request, err := e.standard.ValidationAuthorizeRequest(standardRequest(ctx, a.app, a.form))
	if err != nil { // not after check
		e.refuse(w, a, "invalid_request", "the request was refused")
		return
	}
	request.UserID, request.Scope = account, a.scope
	ti, err := e.standard.GetAuthorizeToken(ctx, request)
	switch {
	case errors.Is(err, oautherrors.ErrInvalidClient), errors.Is(err, oautherrors.ErrInvalidRequest): // the app has changed just now
		e.fail(ctx, w, errRedirect)
	case err != nil:
		if e.Log != nil && !gone(ctx) {
			e.Log.ErrorContext(ctx, "request failed", "endpoint", "authorize", "err", err)
		}
		e.refuse(w, a, "temporarily_unavailable", "the server cannot decide now; try again")
	default:
		e.redirect(w, a, "code", ti.GetCode())
	}
}

var (
	errRedirect = badRequest("the app has not registered the address that its link wants to return to")
	errForm     = &fault{http.StatusForbidden, "access_denied", "this form is too old, or is not yours", ErrInvalidRequest}
	errOrigin   = &fault{http.StatusForbidden, "access_denied", "the answer comes from another site", ErrInvalidRequest}
)

// read reads the query, which is where a POST, of the page's form, has the request as well. Its errors are for the page:
// who asks is not known yet, or not for sure.
func (e *AuthorizationEndpoint) read(r *http.Request) (*asked, error) {
	if len(r.URL.RawQuery) > maxQuery {
		return nil, badRequest("the query is too long")
	}
	form, err := parseForm(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	clients, err := e.Clients.now(r.Context())
	if err != nil {
		return nil, err
	}
	a := &asked{app: clients.byName(form.Get("client_id")), form: form}
	if a.app == nil {
		return nil, badRequest("there is no such app here")
	}
	if a.app.Name == "" {
		a.app.Name = a.app.ID
	}
	uri := form.Get("redirect_uri")
	if !registeredRedirect(a.app, uri) {
		return nil, errRedirect
	}
	if a.redirect, err = url.Parse(uri); err != nil { // not if it is registered
		return nil, errRedirect
	}
	return a, nil
}

// check is what the app is told of its request; an empty code: nothing.
func (a *asked) check(issuer string) (code, description string) {
	known := false
	a.scope, known = signInScope(a.form.Get("scope"))
	switch get := a.form.Get; {
	case get("response_type") == "":
		return "invalid_request", "response_type is missing"
	case get("response_type") != "code":
		return "unsupported_response_type", "response_type must be code"
	case get("response_mode") != "" && get("response_mode") != "query":
		return "invalid_request", "response_mode must be query"
	case get("code_challenge") == "":
		return "invalid_request", "code_challenge is missing: PKCE is required"
	case get("code_challenge_method") != "S256":
		return "invalid_request", "code_challenge_method must be S256"
	case !isChallenge(get("code_challenge")):
		return "invalid_request", "code_challenge is not the SHA-256 of a code_verifier in base64url"
	case !known:
		return "invalid_scope", "scope may be profile, or left out"
	case !ownResource(get("resource"), issuer):
		return "invalid_target", "resource must be the issuer"
	}
	return "", ""
}

// ownResource reports whether the parameter resource (RFC 8707) is left out or names this server, the only one there is.
func ownResource(resource, issuer string) bool {
	if resource == "" || resource == issuer {
		return true
	}
	u, err := url.Parse(issuer)
	return err == nil && u.Path == "" && resource == issuer+"/" // which is the same URL
}

// registeredRedirect compares strings. Only the port is free, where one is registered that has none, of an address of
// the user's own machine: native apps listen where they can (RFC 8252 §7.3).
func registeredRedirect(app *App, uri string) bool {
	if uri == "" {
		return false
	}
	if slices.Contains(app.RedirectURIs, uri) {
		return true
	}
	for _, loopback := range [...]string{"http://127.0.0.1", "http://[::1]"} {
		rest, ok := strings.CutPrefix(uri, loopback+":")
		if !ok {
			continue
		}
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if digits >= 1 && digits <= 5 && slices.Contains(app.RedirectURIs, loopback+rest[digits:]) {
			return true
		}
	}
	return false
}

// sameOrigin refuses forms of other sites. Browsers say by Sec-Fetch-Site where it comes from; the page asks them to say
// nothing else, so that its own form has "null" for an Origin. What is none of both is left to the form's token.
func sameOrigin(r *http.Request, issuer string) error {
	site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
	u, err := url.Parse(issuer)
	if err != nil {
		return err
	}
	if site != "" && site != "same-origin" || origin != "" && origin != "null" && origin != u.Scheme+"://"+u.Host {
		return errOrigin
	}
	return nil
}

// login sends people to log in, and back.
func (e *AuthorizationEndpoint) login(w http.ResponseWriter, r *http.Request) {
	to, err := url.Parse(e.LoginURL)
	if err != nil {
		e.fail(r.Context(), w, err)
		return
	}
	back := url.URL{Path: r.URL.Path, RawQuery: r.URL.RawQuery}
	q := "return_to=" + url.QueryEscape(back.String())
	if to.RawQuery != "" {
		q = to.RawQuery + "&" + q
	}
	to.RawQuery = q
	e.leave(w, to.String())
}

// redirect answers the app.
func (e *AuthorizationEndpoint) redirect(w http.ResponseWriter, a *asked, params ...string) {
	q := make([]string, 0, 5)
	if a.redirect.RawQuery != "" { // RFC 6749 §3.1.2: it is retained
		q = append(q, a.redirect.RawQuery)
	}
	if state := a.form.Get("state"); state != "" {
		params = append(params, "state", state)
	}
	params = append(params, "iss", e.Issuer)
	for i := 0; i < len(params); i += 2 {
		q = append(q, params[i]+"="+url.QueryEscape(params[i+1]))
	}
	to := *a.redirect
	to.RawQuery = strings.Join(q, "&")
	e.leave(w, to.String())
}

func (e *AuthorizationEndpoint) refuse(w http.ResponseWriter, a *asked, code, description string) {
	e.redirect(w, a, "error", code, "error_description", describable(description))
}

// leave redirects with 303: what was posted here is for nobody else (RFC 9700 §4.12).
func (e *AuthorizationEndpoint) leave(w http.ResponseWriter, to string) {
	noStore(w)
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusSeeOther)
}

// fail is for what the app is not told: people see a page, the log the cause.
func (e *AuthorizationEndpoint) fail(ctx context.Context, w http.ResponseWriter, err error) {
	var f *fault
	if errors.As(err, &f) {
		e.show(w, f.status, nil, page{Fault: f.description})
		return
	}
	if e.Log != nil && !gone(ctx) {
		e.Log.ErrorContext(ctx, "request failed", "endpoint", "authorize", "err", err)
	}
	w.Header().Set("Retry-After", retryAfter)
	e.show(w, http.StatusServiceUnavailable, nil, page{Fault: "the server cannot decide now; try again"})
}

// A page is what people see. With a Fault it asks nothing.
type page struct {
	App, Host, Account string
	Named              bool // the app will see the account's own name
	Token              string
	Fault              string
	Style              template.CSS
}

//go:embed authorize.html
var authorizeHTML string

//go:embed authorize.css
var authorizeCSS string

// show writes a page that runs nothing, loads nothing, is in no frame, and whose form leads here and to the app.
func (e *AuthorizationEndpoint) show(w http.ResponseWriter, status int, app *url.URL, p page) {
	p.Style = template.CSS(authorizeCSS)
	var b bytes.Buffer
	if e.page == nil || e.page.Execute(&b, p) != nil { // neither, with what is embedded
		writeError(w, http.StatusInternalServerError, "server_error", "the page cannot be shown")
		return
	}
	forms := "'none'"
	if app != nil { // browsers ask about the whole way of a form, redirects too
		forms = "'self' " + app.Scheme + "://" + app.Host
	}
	noStore(w)
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src "+e.style+"; base-uri 'none'; frame-ancestors 'none'; form-action "+forms)
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // an error means that nobody is there any more
}
