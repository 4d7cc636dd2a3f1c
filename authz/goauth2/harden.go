package goauth2

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/server"

	"github.com/behest-go/behest/store"
)

// Config is what Harden needs beside the server. Tokens and Store are required.
type Config struct {
	// Tokens is the token store that the server's manager has. From now on it is given hashes; who holds a token that
	// was issued before signs in again.
	Tokens oauth2.TokenStore
	// Store remembers what was redeemed and revoked: one that all servers share which share Tokens, such as Behest's own.
	Store store.Store
	// RedirectURIs are the client's, each in full. Nil: the one that its GetDomain returns. go-oauth2's manager still
	// asks that the host ends in that of the domain, unless SetValidateURIHandler says otherwise.
	RedirectURIs func(oauth2.ClientInfo) []string
	// NotFound says that an error of the client store or the token store means that there is no such thing, and not
	// that the store failed. Nil: go by the text, which has "not found", "no rows" or "no documents" in it.
	NotFound func(error) bool
	Now      func() time.Time // for what is ours; go-oauth2 reads the clock. Nil: time.Now
	Log      *slog.Logger     // causes that clients are not told; nil: nowhere
}

// Harden closes the holes that are listed in the package comment, in srv, its hooks and its manager. Call it before
// srv serves and when all hooks are set: those set later replace what it has done. Use srv.Manager from then on, not
// the manager that was there before.
//
// What it changes for clients: token requests are POST; PKCE with S256 is required; redirect_uri must be sent, and be exactly one that is
// registered; implicit and password are off (append password to srv.Config.AllowedGrantTypes if you must); without a
// ClientScopeHandler no scope is granted; Basic credentials are form-decoded (RFC 6749 §2.3.1), so that a secret with %
// or + in it must be sent encoded; refresh tokens rotate, and one that comes back later than ten seconds after it was
// redeemed revokes all that came of it, as a code does within a day.
//
// The hooks are called as before, but for what their errors become: one that is or wraps an error of go-oauth2's is
// answered as that, any other is logged, given to InternalErrorHandler, and answered 503. All faults of the
// configuration are reported at once, and then nothing was changed.
func Harden(srv *server.Server, c Config) error {
	var faults []error
	fault := func(text string) { faults = append(faults, errors.New("goauth2: "+text)) }
	if srv == nil || srv.Manager == nil || srv.Config == nil {
		return errors.New("goauth2: the server is nil, or has no Manager or no Config")
	}
	inner := srv.Manager
	if b, ok := inner.(*border); ok {
		inner = b.Manager
	}
	if _, twice := inner.(*manager); twice {
		fault("the server is hardened already")
	}
	mapper, ok := inner.(interface{ MapTokenStorage(oauth2.TokenStore) })
	if !ok {
		fault(fmt.Sprintf("the manager, a %T, has no MapTokenStorage", inner))
	}
	if c.Tokens == nil {
		fault("Tokens is required")
	}
	if c.Store == nil {
		fault("Store is required")
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	if c.RedirectURIs == nil {
		c.RedirectURIs = func(client oauth2.ClientInfo) []string { return []string{client.GetDomain()} }
	}
	if c.NotFound == nil {
		c.NotFound = saysNotFound
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	b := &book{store: c.Store, now: c.Now}
	t := &tokens{theirs: c.Tokens, book: b, notFound: c.NotFound}
	mapper.MapTokenStorage(t)
	m := &manager{Manager: inner, tokens: t, book: b, redirectURIs: c.RedirectURIs, notFound: c.NotFound, log: c.Log}
	srv.Manager = apart(m)

	config := *srv.Config // it may be another server's too
	config.AllowGetAccessRequest, config.ForcePKCE = false, true
	config.AllowedCodeChallengeMethods = []oauth2.CodeChallengeMethod{oauth2.CodeChallengeS256}
	config.AllowedResponseTypes = slices.DeleteFunc(slices.Clone(config.AllowedResponseTypes), func(rt oauth2.ResponseType) bool { return rt != oauth2.Code })
	config.AllowedGrantTypes = slices.DeleteFunc(slices.Clone(config.AllowedGrantTypes), func(gt oauth2.GrantType) bool {
		return gt == oauth2.PasswordCredentials || gt == oauth2.Implicit
	})
	srv.Config = &config
	(&hooks{srv, m}).set()
	return nil
}

func saysNotFound(err error) bool {
	text := strings.ToLower(err.Error())
	return slices.ContainsFunc([]string{"not found", "no rows", "no documents"}, func(s string) bool { return strings.Contains(text, s) })
}

// hooks are the server's, made safe.
type hooks struct {
	*server.Server
	m *manager
}

func (h *hooks) set() {
	s := h.Server
	s.ClientInfoHandler = h.clientInfo(s.ClientInfoHandler)
	s.UserAuthorizationHandler = h.userAuthorization(s.UserAuthorizationHandler)
	s.PreRedirectErrorHandler = h.preRedirectError(s.PreRedirectErrorHandler)
	s.AccessTokenResolveHandler = accessToken(s.AccessTokenResolveHandler)
	s.InternalErrorHandler = h.internalError(s.InternalErrorHandler)
	s.ResponseErrorHandler = responseError(s.ResponseErrorHandler)
	scopes := s.ClientScopeHandler
	if scopes == nil {
		scopes = func(tgr *oauth2.TokenGenerateRequest) (bool, error) { return tgr.Scope == "", nil }
	}
	s.ClientScopeHandler = func(tgr *oauth2.TokenGenerateRequest) (bool, error) {
		ok, err := scopes(tgr)
		return ok, clean(err)
	}
	if f := s.ClientAuthorizedHandler; f != nil {
		s.ClientAuthorizedHandler = func(client string, gt oauth2.GrantType) (bool, error) {
			ok, err := f(client, gt)
			return ok, clean(err)
		}
	}
	if f := s.PasswordAuthorizationHandler; f != nil {
		s.PasswordAuthorizationHandler = func(ctx context.Context, client, username, password string) (string, error) {
			user, err := f(ctx, client, username, password)
			return user, clean(err)
		}
	}
	if f := s.RefreshingScopeHandler; f != nil {
		s.RefreshingScopeHandler = func(tgr *oauth2.TokenGenerateRequest, old string) (bool, error) {
			ok, err := f(tgr, old)
			return ok, clean(err)
		}
	}
	if f := s.RefreshingValidationHandler; f != nil {
		s.RefreshingValidationHandler = func(ti oauth2.TokenInfo) (bool, error) {
			ok, err := f(ti)
			return ok, clean(err)
		}
	}
	if f := s.RefreshTokenResolveHandler; f != nil {
		s.RefreshTokenResolveHandler = func(r *http.Request) (string, error) {
			token, err := f(r)
			return token, clean(err)
		}
	}
}

// clientInfo is the first hook of a token request, and the place to judge the request as a whole: RFC 6749 §2.3.1 and
// §3.2. It authenticates the client, so that nothing else is judged before.
func (h *hooks) clientInfo(theirs server.ClientInfoHandler) server.ClientInfoHandler {
	return func(r *http.Request) (string, string, error) {
		if r.PostForm == nil {
			_ = r.ParseForm() // what is malformed is missing
		}
		header := r.Header.Values("Authorization")
		if r.URL.RawQuery != "" || r.MultipartForm != nil || len(header) > 1 || repeated(r.PostForm) {
			return "", "", oautherrors.ErrInvalidRequest
		}
		gt := oauth2.GrantType(r.PostForm.Get("grant_type"))
		if gt != "" && !h.CheckGrantType(gt) {
			return "", "", oautherrors.ErrUnsupportedGrantType
		}
		id, secret, err := credentials(theirs, r, header)
		if err != nil {
			return "", "", clean(err)
		}
		// go-oauth2's manager asks for the secret itself, but only then, and not to refresh.
		slow := gt == oauth2.Refreshing || gt == oauth2.PasswordCredentials
		if _, err := h.m.authenticate(r.Context(), id, secret, slow); err != nil {
			return "", "", err
		}
		// The manager is given r itself: there is no other way to tell it.
		*r = *r.WithContext(context.WithValue(r.Context(), authenticationKey{}, authentication{id, gt}))
		return id, secret, nil
	}
}

// credentials reads Basic ones itself, and leaves the others to their hook.
func credentials(theirs server.ClientInfoHandler, r *http.Request, header []string) (id, secret string, err error) {
	scheme, text := "", ""
	if len(header) == 1 {
		scheme, text, _ = strings.Cut(header[0], " ")
	}
	if !strings.EqualFold(scheme, "Basic") {
		return theirs(r)
	}
	if r.PostForm.Has("client_secret") || r.PostForm.Has("client_assertion") { // RFC 6749 §2.3: one method
		return "", "", oautherrors.ErrInvalidRequest
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Trim(text, " "))
	if err != nil {
		return "", "", oautherrors.ErrInvalidClient
	}
	id, secret, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", oautherrors.ErrInvalidClient
	}
	if id, err = url.QueryUnescape(id); err != nil {
		return "", "", oautherrors.ErrInvalidClient
	}
	if secret, err = url.QueryUnescape(secret); err != nil {
		return "", "", oautherrors.ErrInvalidClient
	}
	if named := r.PostForm.Get("client_id"); named != "" && named != id {
		return "", "", oautherrors.ErrInvalidRequest
	}
	return id, secret, nil
}

func repeated(form url.Values) bool {
	for _, values := range form {
		if len(values) > 1 {
			return true
		}
	}
	return false
}

// userAuthorization judges where the answer would go before the user is asked (RFC 6749 §4.1.2.1), and that no
// parameter is there twice (§3.1).
func (h *hooks) userAuthorization(theirs server.UserAuthorizationHandler) server.UserAuthorizationHandler {
	return func(w http.ResponseWriter, r *http.Request) (string, error) {
		for _, name := range []string{"client_id", "redirect_uri", "response_type", "scope", "state", "code_challenge", "code_challenge_method"} {
			if len(r.Form[name]) > 1 {
				return "", oautherrors.ErrInvalidRequest
			}
		}
		if err := h.redirect(r.Context(), r.FormValue("client_id"), r.FormValue("redirect_uri")); err != nil {
			return "", err
		}
		user, err := theirs(w, r)
		return user, clean(err)
	}
}

// redirect reports whether an answer may go there.
func (h *hooks) redirect(ctx context.Context, client, uri string) error {
	c, err := h.m.GetClient(ctx, client)
	if err == nil && !h.m.registered(c, uri) {
		err = oautherrors.ErrInvalidRedirectURI
	}
	return err
}

// preRedirectError lets errors go only where codes may. Else HandleAuthorizeRequest returns the error, for the server to
// show to the user (RFC 6749 §4.1.2.1).
func (h *hooks) preRedirectError(theirs server.PreRedirectErrorHandler) server.PreRedirectErrorHandler {
	return func(w http.ResponseWriter, req *server.AuthorizeRequest, err error) error {
		err = clean(err)
		if req == nil {
			if theirs != nil {
				return theirs(w, nil, err)
			}
			return err
		}
		twice := req.Request != nil && (len(req.Request.Form["redirect_uri"]) > 1 || len(req.Request.Form["client_id"]) > 1)
		if twice || h.redirect(context.WithoutCancel(requestContext(req)), req.ClientID, req.RedirectURI) != nil {
			return err
		}
		if theirs != nil {
			return theirs(w, req, err)
		}
		data, _, _ := h.GetErrorData(err)
		uri, err := h.GetRedirectURI(req, data)
		if err != nil {
			return err
		}
		w.Header().Set("Location", uri)
		w.WriteHeader(http.StatusFound)
		return nil
	}
}

func requestContext(req *server.AuthorizeRequest) context.Context {
	if req.Request == nil {
		return context.Background()
	}
	return req.Request.Context()
}

// accessToken takes a bearer token from the header alone (RFC 6750 §2.1), and leaves body and query to the handler:
// their hook sees neither.
func accessToken(theirs server.AccessTokenResolveHandler) server.AccessTokenResolveHandler {
	return func(r *http.Request) (string, bool) {
		header := r.Header.Values("Authorization")
		switch {
		case len(header) > 1:
			return "", false
		case len(header) == 1:
			if s := header[0]; len(s) > 7 && strings.EqualFold(s[:7], "Bearer ") {
				token := strings.TrimLeft(s[7:], " ")
				return token, token != ""
			}
		}
		bare := &http.Request{Method: http.MethodGet, Host: r.Host, RemoteAddr: r.RemoteAddr, TLS: r.TLS, Header: r.Header,
			URL: &url.URL{Path: r.URL.Path}, Body: http.NoBody, Form: url.Values{}, PostForm: url.Values{}}
		return theirs(bare.WithContext(r.Context()))
	}
}

// internalError answers what go-oauth2 has no description for.
func (h *hooks) internalError(theirs server.InternalErrorHandler) server.InternalErrorHandler {
	return func(err error) *oautherrors.Response {
		answer := func(code error, status int) *oautherrors.Response {
			re := oautherrors.NewResponse(code, status)
			re.Description = oautherrors.Descriptions[code]
			return re
		}
		cause := err
		switch f := (*failure)(nil); {
		case errors.As(err, &f):
			cause = f.cause
		case errors.Is(err, oautherrors.ErrInvalidAccessToken), errors.Is(err, oautherrors.ErrExpiredAccessToken):
			re := answer(errInvalidToken, http.StatusUnauthorized)
			re.SetHeader("WWW-Authenticate", `Bearer error="invalid_token"`) // RFC 6750 §3
			return re
		case slices.Contains(protocol, err):
			return answer(oautherrors.ErrInvalidGrant, http.StatusBadRequest)
		}
		if !errors.Is(cause, context.Canceled) {
			h.m.log.Error("goauth2: a request failed", "err", cause)
		}
		if theirs != nil {
			if re := theirs(cause); re != nil {
				return re
			}
		}
		if errors.Is(cause, errNotRotated) {
			return answer(oautherrors.ErrServerError, http.StatusInternalServerError)
		}
		re := answer(oautherrors.ErrTemporarilyUnavailable, http.StatusServiceUnavailable)
		re.SetHeader("Retry-After", "1")
		return re
	}
}

var errInvalidToken = errors.New("invalid_token")

// responseError sets the statuses of RFC 6749 §5.2.
func responseError(theirs server.ResponseErrorHandler) server.ResponseErrorHandler {
	return func(re *oautherrors.Response) {
		switch re.Error {
		case oautherrors.ErrInvalidClient:
			re.StatusCode = http.StatusUnauthorized
			re.SetHeader("WWW-Authenticate", `Basic realm="oauth2", charset="UTF-8"`)
		case oautherrors.ErrUnauthorizedClient, oautherrors.ErrInvalidGrant, oautherrors.ErrUnsupportedGrantType, oautherrors.ErrUnsupportedResponseType:
			re.StatusCode = http.StatusBadRequest
		}
		if theirs != nil {
			theirs(re)
		}
	}
}
