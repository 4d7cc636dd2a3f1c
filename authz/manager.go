package authz

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/models"

	"github.com/behest-go/behest/store"
)

// kindAccess is the kind of an access token of client_credentials. Its ID is the SHA-256 of the token, so each is an
// aggregate of its own; App is whose it is, NotAfter when it ends.
const kindAccess = "access"

const (
	accessPrefix = "bhat_"
	accessLife   = 10 * time.Minute
)

// A manager is what go-oauth2's server asks: its oauth2.Manager, over our clients and our store. Tokens of
// client_credentials stand for the app and for no user: they carry no scope, and open GET /oauth2/grants and nothing
// else. The rest are sign-ins.
type manager struct {
	clients *Clients
	store   store.Store
	now     func() time.Time
	signIns *signIns // nil: none
}

var _ oauth2.Manager = (*manager)(nil)

var errNotOffered = errors.New("authz: this server has no such grant")

type accessData struct {
	At int64 `json:"at"` // microseconds
}

// GetClient implements oauth2.Manager. The client it returns has no secret: who asks has been authenticated by Clients.
func (m *manager) GetClient(ctx context.Context, id string) (oauth2.ClientInfo, error) {
	now, err := m.clients.now(ctx)
	if err != nil {
		return nil, fmt.Errorf("authz: %w", err)
	}
	if now.byName(id) == nil {
		return nil, oautherrors.ErrInvalidClient
	}
	return &models.Client{ID: id}, nil
}

// GenerateAccessToken implements oauth2.Manager for client_credentials and authorization_code. Errors of the store are
// wrapped, and so hashable, which go-oauth2 takes for granted.
func (m *manager) GenerateAccessToken(ctx context.Context, gt oauth2.GrantType, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	switch {
	case gt == oauth2.AuthorizationCode && m.signIns != nil:
		return signInInfo(m.signIns.redeem(ctx, tgr.ClientID, tgr.Code, tgr.RedirectURI, tgr.CodeVerifier))
	case gt != oauth2.ClientCredentials:
		return nil, oautherrors.ErrUnsupportedGrantType
	case tgr.Scope != "":
		return nil, oautherrors.ErrInvalidScope
	}
	client, err := m.GetClient(ctx, tgr.ClientID)
	if err != nil {
		return nil, err
	}
	clients, err := m.clients.now(ctx)
	if err != nil {
		return nil, fmt.Errorf("authz: %w", err)
	}
	token, ok := clients.accessToken(client.GetID())
	if !ok { // removed just now
		return nil, oautherrors.ErrInvalidClient
	}
	now := clock(m.now)
	data, err := json.Marshal(accessData{now.UnixMicro()})
	if err != nil {
		return nil, err
	}
	out, err := m.store.Apply(ctx, now, []store.Op{store.Put(store.Record{
		Kind: kindAccess, ID: accessID(token), App: client.GetID(), NotAfter: now.Add(accessLife), Data: data,
	})})
	if err != nil {
		return nil, fmt.Errorf("authz: storing an access token: %w", err)
	}
	if !out.Applied() {
		return nil, fmt.Errorf("authz: storing an access token: %v", out.Reason)
	}
	return accessInfo(token, client.GetID(), now, accessLife), nil
}

// LoadAccessToken implements oauth2.Manager: ErrInvalidAccessToken for what is no token, or no registered client's
// any more, ErrExpiredAccessToken from its end on; any other error is the store's.
func (m *manager) LoadAccessToken(ctx context.Context, token string) (oauth2.TokenInfo, error) {
	if strings.HasPrefix(token, signInAccessPrefix) && m.signIns != nil {
		return m.loadSignIn(ctx, token)
	}
	r, err := m.load(ctx, token)
	if err != nil {
		return nil, err
	}
	var d accessData
	if err := json.Unmarshal(r.Data, &d); err != nil {
		return nil, fmt.Errorf("authz: record %s %s: %w", r.Kind, r.ID, err)
	}
	at := time.UnixMicro(d.At).UTC()
	return accessInfo(token, r.App, at, r.NotAfter.Sub(at)), nil
}

func (m *manager) load(ctx context.Context, token string) (*store.Record, error) {
	clients, err := m.clients.now(ctx)
	if err != nil {
		return nil, err
	}
	if !clients.madeAccess(token) { // P9
		return nil, oautherrors.ErrInvalidAccessToken
	}
	found, err := m.store.Get(ctx, kindAccess, accessID(token))
	if err != nil {
		return nil, fmt.Errorf("authz: reading an access token: %w", err)
	}
	if len(found) == 0 || clients.byName(found[0].App) == nil {
		return nil, oautherrors.ErrInvalidAccessToken
	}
	if !clock(m.now).Before(found[0].NotAfter) {
		return nil, oautherrors.ErrExpiredAccessToken
	}
	return &found[0], nil
}

// loadSignIn is for the access tokens of sign-ins.
func (m *manager) loadSignIn(ctx context.Context, token string) (oauth2.TokenInfo, error) {
	clients, err := m.clients.now(ctx)
	if err != nil {
		return nil, err
	}
	k, a, err := m.signIns.access(ctx, token)
	switch {
	case errors.Is(err, errNoSignIn), err == nil && clients.byName(k.App) == nil:
		return nil, oautherrors.ErrInvalidAccessToken
	case err != nil:
		return nil, err
	}
	at := time.UnixMicro(a.At).UTC()
	t := accessInfo(token, k.App, at, time.UnixMicro(a.End).Sub(at))
	t.SetUserID(k.Owner)
	t.SetScope(k.Scope)
	return t, nil
}

// RemoveAccessToken implements oauth2.Manager: RFC 7009. What is not there is removed already. With a sign-in's token all
// of the sign-in ends.
func (m *manager) RemoveAccessToken(ctx context.Context, token string) error {
	if strings.HasPrefix(token, signInAccessPrefix) && m.signIns != nil {
		return m.signIns.revoke(ctx, "", token)
	}
	_, err := m.store.Apply(ctx, clock(m.now), []store.Op{store.Delete(kindAccess, accessID(token), store.AnyVersion)})
	if err != nil {
		return fmt.Errorf("authz: removing an access token: %w", err)
	}
	return nil
}

// GenerateAuthToken implements oauth2.Manager: the account, tgr.UserID, has agreed. What go-oauth2 leaves to its caller, or
// does not ask at all, is asked again: that the redirect URI is the client's, that there is a challenge, and by S256.
func (m *manager) GenerateAuthToken(ctx context.Context, rt oauth2.ResponseType, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	if m.signIns == nil {
		return nil, fmt.Errorf("%w: authorization_code", errNotOffered)
	}
	clients, err := m.clients.now(ctx)
	if err != nil {
		return nil, fmt.Errorf("authz: %w", err)
	}
	app := clients.byName(tgr.ClientID)
	scope, known := signInScope(tgr.Scope)
	switch {
	case app == nil:
		return nil, oautherrors.ErrInvalidClient
	case rt != oauth2.Code:
		return nil, oautherrors.ErrUnsupportedResponseType
	case tgr.UserID == "":
		return nil, oautherrors.ErrAccessDenied
	case !known:
		return nil, oautherrors.ErrInvalidScope
	case !registeredRedirect(app, tgr.RedirectURI), tgr.CodeChallengeMethod != oauth2.CodeChallengeS256, !isChallenge(tgr.CodeChallenge):
		return nil, oautherrors.ErrInvalidRequest
	}
	code, err := m.signIns.begin(ctx, tgr.UserID, app.ID, tgr.RedirectURI, scope, tgr.CodeChallenge)
	if err != nil {
		return nil, err
	}
	t := models.NewToken()
	t.SetClientID(app.ID)
	t.SetUserID(tgr.UserID)
	t.SetRedirectURI(tgr.RedirectURI)
	t.SetScope(scope)
	t.SetCode(code)
	return t, nil
}

// RefreshAccessToken implements oauth2.Manager, for the client that tgr names: it has been authenticated by Clients.
func (m *manager) RefreshAccessToken(ctx context.Context, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	if m.signIns == nil {
		return nil, fmt.Errorf("%w: refresh_token", errNotOffered)
	}
	return signInInfo(m.signIns.rotate(ctx, tgr.ClientID, tgr.Refresh, tgr.Scope))
}

// RemoveRefreshToken implements oauth2.Manager: all of the sign-in ends.
func (m *manager) RemoveRefreshToken(ctx context.Context, refresh string) error {
	if m.signIns == nil {
		return fmt.Errorf("%w: refresh_token", errNotOffered)
	}
	return m.signIns.revoke(ctx, "", refresh)
}

// LoadRefreshToken implements oauth2.Manager: a token that could be used now.
func (m *manager) LoadRefreshToken(ctx context.Context, refresh string) (oauth2.TokenInfo, error) {
	if m.signIns == nil {
		return nil, fmt.Errorf("%w: refresh_token", errNotOffered)
	}
	t, k, err := m.signIns.refreshable(ctx, "", refresh)
	var no *fault
	switch {
	case errors.As(err, &no), err == nil && t.generation != k.Generation:
		return nil, oautherrors.ErrInvalidRefreshToken
	case err != nil:
		return nil, err
	case !clock(m.now).Before(k.NotAfter):
		return nil, oautherrors.ErrExpiredRefreshToken
	}
	info := models.NewToken()
	info.SetClientID(k.App)
	info.SetUserID(k.Owner)
	info.SetScope(k.Scope)
	info.SetRefresh(refresh)
	return info, nil
}

func signInInfo(i *issued, err error) (oauth2.TokenInfo, error) {
	if err != nil {
		return nil, err
	}
	t := accessInfo(i.access, i.App, i.at, i.life)
	t.SetUserID(i.Owner)
	t.SetScope(i.Scope)
	t.SetRefresh(i.refresh)
	t.SetRefreshCreateAt(i.at)
	t.SetRefreshExpiresIn(i.NotAfter.Sub(i.at))
	return t, nil
}

// An access token is 32 random bytes, 16 that only the server and the client itself can make of them, and the
// client's ID. What a stranger forges never reaches the store, and a client that gets another secret loses its
// tokens.
const accessRandom, accessMAC = 32, 16

var accessEncoding = base64.RawURLEncoding.Strict()

func (c *roster) accessToken(id string) (string, bool) {
	of, ok := c.byID[id]
	if !ok {
		return "", false
	}
	raw := make([]byte, accessRandom, accessRandom+accessMAC+len(id))
	_, _ = rand.Read(raw) // never fails
	raw = append(append(raw, accessCheck(of, raw)...), id...)
	return accessPrefix + accessEncoding.EncodeToString(raw), true
}

func (c *roster) madeAccess(token string) bool {
	text, ok := strings.CutPrefix(token, accessPrefix)
	if !ok || len(text) > 256 || strings.ContainsAny(text, "\r\n") {
		return false
	}
	raw, err := accessEncoding.DecodeString(text)
	if err != nil || len(raw) <= accessRandom+accessMAC {
		return false
	}
	known, ok := c.byID[string(raw[accessRandom+accessMAC:])]
	return ok && hmac.Equal(raw[accessRandom:accessRandom+accessMAC], accessCheck(known, raw[:accessRandom]))
}

func accessCheck(of *client, random []byte) []byte {
	mac := hmac.New(sha256.New, of.mac[:])
	mac.Write([]byte("behest access token"))
	mac.Write([]byte(of.app.ID))
	mac.Write(random)
	return mac.Sum(nil)[:accessMAC]
}

func accessID(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func accessInfo(token, client string, at time.Time, life time.Duration) oauth2.TokenInfo {
	t := models.NewToken()
	t.SetClientID(client)
	t.SetAccess(token)
	t.SetAccessCreateAt(at)
	t.SetAccessExpiresIn(life)
	return t
}

// noAccessToken reports whether the error of LoadAccessToken says "no", not "nobody knows".
func noAccessToken(err error) bool {
	return errors.Is(err, oautherrors.ErrInvalidAccessToken) || errors.Is(err, oautherrors.ErrExpiredAccessToken)
}
