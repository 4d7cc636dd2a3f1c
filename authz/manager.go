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
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/models"
	"github.com/go-oauth2/oauth2/v4/server"

	"github.com/behest-go/behest/store"
)

// kindAccess is the kind of an access token of client_credentials. Its ID is the SHA-256 of the token, so each is an
// aggregate of its own; App is whose it is, NotAfter when it ends.
const kindAccess = "access"

const (
	accessPrefix = "bhat_"
	accessLife   = 10 * time.Minute
)

// A manager is what go-oauth2's server asks: its oauth2.Manager, over our clients and our store. It serves
// client_credentials alone. Its tokens stand for the app and for no user: they carry no scope, and open GET
// /oauth2/grants and nothing else.
type manager struct {
	clients *Clients
	store   store.Store
	now     func() time.Time
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

// GenerateAccessToken implements oauth2.Manager for client_credentials. Errors of the store are wrapped, and so
// hashable, which go-oauth2 takes for granted.
func (m *manager) GenerateAccessToken(ctx context.Context, gt oauth2.GrantType, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	switch {
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

// RemoveAccessToken implements oauth2.Manager: RFC 7009. What is not there is removed already.
func (m *manager) RemoveAccessToken(ctx context.Context, token string) error {
	_, err := m.store.Apply(ctx, clock(m.now), []store.Op{store.Delete(kindAccess, accessID(token), store.AnyVersion)})
	if err != nil {
		return fmt.Errorf("authz: removing an access token: %w", err)
	}
	return nil
}

// GenerateAuthToken implements oauth2.Manager: there is no authorization endpoint.
func (*manager) GenerateAuthToken(context.Context, oauth2.ResponseType, *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	return nil, fmt.Errorf("%w: authorization_code", errNotOffered)
}

// RefreshAccessToken implements oauth2.Manager: there are no refresh tokens.
func (*manager) RefreshAccessToken(context.Context, *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	return nil, fmt.Errorf("%w: refresh_token", errNotOffered)
}

// RemoveRefreshToken implements oauth2.Manager: there are no refresh tokens.
func (*manager) RemoveRefreshToken(context.Context, string) error {
	return fmt.Errorf("%w: refresh_token", errNotOffered)
}

// LoadRefreshToken implements oauth2.Manager: there are no refresh tokens.
func (*manager) LoadRefreshToken(context.Context, string) (oauth2.TokenInfo, error) {
	return nil, fmt.Errorf("%w: refresh_token", errNotOffered)
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

type authenticatedKey struct{}

// newStandard makes go-oauth2's server. It is given requests by standardRequest, and so sees nothing that was not checked.
func newStandard(m *manager, log *slog.Logger) *server.Server {
	s := server.NewServer(&server.Config{TokenType: "Bearer", AllowedGrantTypes: []oauth2.GrantType{oauth2.ClientCredentials}}, m)
	s.ClientInfoHandler = func(r *http.Request) (string, string, error) {
		id, ok := r.Context().Value(authenticatedKey{}).(string)
		if !ok {
			return "", "", oautherrors.ErrInvalidClient
		}
		return id, "", nil
	}
	s.ClientScopeHandler = func(tgr *oauth2.TokenGenerateRequest) (bool, error) { return tgr.Scope == "", nil }
	s.InternalErrorHandler = func(err error) *oautherrors.Response {
		if log != nil && !errors.Is(err, context.Canceled) {
			log.Error("request failed", "endpoint", "token", "err", err)
		}
		return oautherrors.NewResponse(oautherrors.ErrTemporarilyUnavailable, http.StatusServiceUnavailable)
	}
	s.ResponseTokenHandler = func(w http.ResponseWriter, data map[string]any, _ http.Header, status ...int) error {
		code, failed := data["error"].(string)
		if !failed {
			writeJSON(w, http.StatusOK, data)
			return nil
		}
		description := "the request was refused"
		answer := http.StatusBadRequest // RFC 6749 §5.2; go-oauth2 has others for some
		switch code {
		case "invalid_scope":
			description = "client_credentials has no scope: only a user's operation gives one"
		case "invalid_client":
			answer, description = errClient.status, errClient.description
		case "temporarily_unavailable", "server_error":
			answer, code, description = http.StatusServiceUnavailable, "temporarily_unavailable", "the server cannot decide now; try again"
		}
		writeError(w, answer, code, description)
		return nil
	}
	return s
}

// standardRequest is all that go-oauth2 sees of a request.
func standardRequest(ctx context.Context, app *App, form url.Values) *http.Request {
	checked := url.Values{"grant_type": {form.Get("grant_type")}, "scope": {form.Get("scope")}}
	r := &http.Request{Method: http.MethodPost, URL: &url.URL{}, Header: http.Header{}, Body: http.NoBody, Form: checked, PostForm: checked}
	return r.WithContext(context.WithValue(ctx, authenticatedKey{}, app.ID))
}
