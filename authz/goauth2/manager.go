package goauth2

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strings"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
)

// A manager is theirs, made safe. Its token store is tokens.
type manager struct {
	oauth2.Manager
	tokens       *tokens
	book         *book
	redirectURIs func(oauth2.ClientInfo) []string
	notFound     func(error) bool
	log          *slog.Logger
}

// A failure is an error on this side: it can be a key of go-oauth2's maps, whatever its cause is, and tells a client
// that is shown its text nothing.
type failure struct{ cause error }

func (*failure) Error() string   { return oautherrors.ErrTemporarilyUnavailable.Error() }
func (f *failure) Unwrap() error { return f.cause }

// protocol are the errors by which go-oauth2 knows what to tell a client. It compares them, so that one that is wrapped
// is none to it.
var protocol = []error{
	oautherrors.ErrInvalidRequest, oautherrors.ErrUnauthorizedClient, oautherrors.ErrAccessDenied, oautherrors.ErrUnsupportedResponseType,
	oautherrors.ErrInvalidScope, oautherrors.ErrServerError, oautherrors.ErrTemporarilyUnavailable, oautherrors.ErrInvalidClient,
	oautherrors.ErrInvalidGrant, oautherrors.ErrUnsupportedGrantType, oautherrors.ErrCodeChallengeRquired,
	oautherrors.ErrUnsupportedCodeChallengeMethod, oautherrors.ErrInvalidCodeChallengeLen,
	oautherrors.ErrInvalidRedirectURI, oautherrors.ErrInvalidAuthorizeCode, oautherrors.ErrInvalidAccessToken, oautherrors.ErrInvalidRefreshToken,
	oautherrors.ErrExpiredAccessToken, oautherrors.ErrExpiredRefreshToken, oautherrors.ErrMissingCodeVerifier,
	oautherrors.ErrMissingCodeChallenge, oautherrors.ErrInvalidCodeChallenge,
}

// clean returns nil, an error of protocol, or a failure.
func clean(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range protocol {
		if errors.Is(err, known) {
			return known
		}
	}
	if f := (*failure)(nil); errors.As(err, &f) {
		return f
	}
	return &failure{err}
}

// GetClient implements oauth2.Manager: ErrInvalidClient for a client that does not exist.
func (m *manager) GetClient(ctx context.Context, id string) (oauth2.ClientInfo, error) {
	client, err := m.Manager.GetClient(ctx, id)
	switch {
	case err != nil && m.notFound(err), err == nil && client == nil:
		return nil, oautherrors.ErrInvalidClient
	case err != nil:
		return nil, clean(err)
	}
	return client, nil
}

// authenticate returns the client, or ErrInvalidClient unless that is its secret. Without slow it leaves a client that
// verifies by itself, which takes its time, to go-oauth2's manager.
func (m *manager) authenticate(ctx context.Context, id, secret string, slow bool) (oauth2.ClientInfo, error) {
	client, err := m.GetClient(ctx, id)
	if err != nil {
		return nil, err
	}
	if v, ok := client.(oauth2.ClientPasswordVerifier); ok {
		if slow && !v.VerifyPassword(secret) {
			return nil, oautherrors.ErrInvalidClient
		}
		return client, nil
	}
	want := client.GetSecret()
	if want == "" {
		if !client.IsPublic() { // go-oauth2 lets everybody in
			return nil, oautherrors.ErrInvalidClient
		}
		return client, nil
	}
	a, b := sha256.Sum256([]byte(secret)), sha256.Sum256([]byte(want))
	if subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return nil, oautherrors.ErrInvalidClient
	}
	return client, nil
}

// An authentication, in the context of a request, says which client it has been authenticated for, to what end.
type authentication struct {
	client string
	grant  oauth2.GrantType
}

type authenticationKey struct{}

func authenticated(gt oauth2.GrantType, tgr *oauth2.TokenGenerateRequest) bool {
	if tgr.Request == nil {
		return false
	}
	a, ok := tgr.Request.Context().Value(authenticationKey{}).(authentication)
	return ok && a == authentication{tgr.ClientID, gt}
}

// registered reports whether the client has exactly this redirect URI (RFC 9700 §2.1). The port of a loopback address
// is whatever the client got (RFC 8252 §7.3).
func (m *manager) registered(client oauth2.ClientInfo, uri string) bool {
	return slices.ContainsFunc(m.redirectURIs(client), func(known string) bool {
		return known != "" && (known == uri || anyPort(known) != "" && anyPort(known) == anyPort(uri))
	})
}

// anyPort is a loopback URL without its port; empty for any other.
func anyPort(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "http" || u.User != nil || strings.Contains(uri, "#") {
		return ""
	}
	switch u.Hostname() {
	case "127.0.0.1", "::1":
		u.Host = "[" + u.Hostname() + "]"
		return u.String()
	}
	return ""
}

// GenerateAuthToken implements oauth2.Manager: a code, with PKCE by S256, for a redirect URI that is registered.
func (m *manager) GenerateAuthToken(ctx context.Context, rt oauth2.ResponseType, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	client, err := m.GetClient(ctx, tgr.ClientID)
	switch {
	case err != nil:
		return nil, err
	case !m.registered(client, tgr.RedirectURI):
		return nil, oautherrors.ErrInvalidRedirectURI
	case rt != oauth2.Code: // an access token in a URL (RFC 9700 §2.1.2)
		return nil, oautherrors.ErrUnsupportedResponseType
	case tgr.CodeChallenge == "":
		return nil, oautherrors.ErrCodeChallengeRquired
	case tgr.CodeChallengeMethod != oauth2.CodeChallengeS256:
		return nil, oautherrors.ErrUnsupportedCodeChallengeMethod
	case len(tgr.CodeChallenge) != 43 || !unreserved(tgr.CodeChallenge): // RFC 7636 §4.2
		return nil, oautherrors.ErrInvalidCodeChallengeLen
	}
	f := &flow{}
	ti, err := m.Manager.GenerateAuthToken(f.in(ctx), rt, tgr)
	return ti, clean(err)
}

// unreserved is what a verifier or a challenge is of.
func unreserved(s string) bool {
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~") == ""
}

// GenerateAccessToken implements oauth2.Manager.
func (m *manager) GenerateAccessToken(ctx context.Context, gt oauth2.GrantType, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	if !authenticated(gt, tgr) {
		if _, err := m.authenticate(ctx, tgr.ClientID, tgr.ClientSecret, false); err != nil {
			return nil, err
		}
	}
	if gt == oauth2.AuthorizationCode && tgr.CodeVerifier != "" && (len(tgr.CodeVerifier) < 43 || len(tgr.CodeVerifier) > 128 || !unreserved(tgr.CodeVerifier)) {
		return nil, oautherrors.ErrInvalidCodeChallenge // RFC 7636 §4.1: no such verifier
	}
	f := &flow{}
	ti, err := m.Manager.GenerateAccessToken(f.in(ctx), gt, tgr)
	if gt == oauth2.AuthorizationCode && errors.Is(err, oautherrors.ErrInvalidAuthorizeCode) && tgr.Code != "" {
		// The client is who it says, or go-oauth2 would have said so first.
		if err := m.replayed(ctx, kindCode, stored(roleCode, tgr.Code), tgr.ClientID); err != nil {
			return nil, clean(err)
		}
	}
	return ti, clean(err)
}

// replayed ends the family of what was redeemed long ago and is presented again (RFC 6749 §4.1.2, RFC 9700 §4.14.2).
func (m *manager) replayed(ctx context.Context, kind, id, client string) error {
	mark, _, v, err := m.book.look(ctx, kind, id)
	if err != nil || v != again || mark.Client != client {
		return err
	}
	m.log.WarnContext(ctx, "a code or a refresh token came again: all that came of it is revoked", "client", client)
	return m.end(ctx, mark.Family)
}

// end kills a family, and removes what is alive of it.
func (m *manager) end(ctx context.Context, id string) error {
	f, err := m.book.kill(ctx, id)
	if err != nil {
		return err
	}
	return m.tokens.remove(ctx, f.Access, f.Refresh)
}

// RefreshAccessToken implements oauth2.Manager: for the token's own client, which has authenticated; for no more scope
// than there was; once (RFC 6749 §6, §10.4).
func (m *manager) RefreshAccessToken(ctx context.Context, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	if !authenticated(oauth2.Refreshing, tgr) {
		if _, err := m.authenticate(ctx, tgr.ClientID, tgr.ClientSecret, true); err != nil {
			return nil, err
		}
	}
	if tgr.Refresh == "" {
		return nil, oautherrors.ErrInvalidRequest
	}
	id := stored(roleRefresh, tgr.Refresh)
	mark, _, v, err := m.book.look(ctx, kindRefresh, id)
	switch {
	case err != nil:
		return nil, clean(err)
	case v == again:
		if err := m.replayed(ctx, kindRefresh, id, tgr.ClientID); err != nil {
			return nil, clean(err)
		}
		return nil, oautherrors.ErrInvalidRefreshToken
	case v != won, mark.Client != tgr.ClientID:
		return nil, oautherrors.ErrInvalidRefreshToken
	}
	old, err := m.LoadRefreshToken(ctx, tgr.Refresh)
	if err != nil {
		return nil, err
	}
	if !within(tgr.Scope, old.GetScope()) {
		return nil, oautherrors.ErrInvalidScope
	}
	var current family
	r, err := m.book.get(ctx, kindFamily, mark.Family, &current)
	if err != nil {
		return nil, clean(err)
	}
	if r.Version == 0 || current.Dead {
		return nil, oautherrors.ErrInvalidRefreshToken
	}
	switch _, v, err := m.book.redeem(ctx, kindRefresh, id); {
	case err != nil:
		return nil, clean(err)
	case v != won:
		return nil, oautherrors.ErrInvalidRefreshToken
	}
	f := &flow{family: mark.Family, version: r.Version}
	ti, err := m.Manager.RefreshAccessToken(f.in(ctx), tgr)
	if err == nil && ti.GetRefresh() == "" {
		err = errNotRotated
	}
	if err != nil {
		return nil, clean(err)
	}
	// Whatever their RefreshingConfig keeps: what was rotated is over.
	if err := m.tokens.remove(f.in(ctx), current.Access, current.Refresh); err != nil {
		return nil, clean(err)
	}
	return ti, nil
}

// within reports whether a scope asks for nothing that the other has not.
func within(asked, had string) bool {
	all := strings.Fields(had)
	for _, s := range strings.Fields(asked) {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}

// LoadAccessToken implements oauth2.Manager.
func (m *manager) LoadAccessToken(ctx context.Context, access string) (oauth2.TokenInfo, error) {
	ti, err := m.Manager.LoadAccessToken(ctx, access)
	if errors.Is(err, oautherrors.ErrExpiredRefreshToken) { // which takes the access token along
		err = oautherrors.ErrExpiredAccessToken
	}
	return ti, clean(err)
}

// LoadRefreshToken implements oauth2.Manager.
func (m *manager) LoadRefreshToken(ctx context.Context, refresh string) (oauth2.TokenInfo, error) {
	ti, err := m.Manager.LoadRefreshToken(ctx, refresh)
	return ti, clean(err)
}

// RemoveAccessToken implements oauth2.Manager: the refresh token goes along. What is not there is removed already.
func (m *manager) RemoveAccessToken(ctx context.Context, access string) error {
	if access == "" {
		return oautherrors.ErrInvalidAccessToken
	}
	ti, err := m.tokens.GetByAccess(ctx, access)
	if err != nil || isNil(ti) {
		return clean(err)
	}
	return clean(m.revoke(ctx, stored(roleAccess, access), ti.GetRefresh()))
}

// RemoveRefreshToken implements oauth2.Manager: the access token goes along, also for one that was redeemed before.
func (m *manager) RemoveRefreshToken(ctx context.Context, refresh string) error {
	if refresh == "" {
		return oautherrors.ErrInvalidRefreshToken
	}
	return clean(m.revoke(ctx, "", stored(roleRefresh, refresh)))
}

// revoke ends the family of a refresh token, and an access token. Both are in their stored form.
func (m *manager) revoke(ctx context.Context, access, refresh string) error {
	if refresh != "" {
		mark, _, v, err := m.book.look(ctx, kindRefresh, refresh)
		if err != nil {
			return err
		}
		if v != unknown {
			if err := m.end(ctx, mark.Family); err != nil {
				return err
			}
		}
	}
	return m.tokens.remove(ctx, access, refresh)
}
