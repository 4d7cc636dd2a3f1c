package authz

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

func endpointManager(t *testing.T, s store.Store, now func() time.Time) *manager {
	clients, err := NewClients([]App{{ID: "probe", Secret: grant.NewSecret("12345678")}})
	require.NoError(t, err)
	return &manager{clients: clients, store: s, now: now}
}

// What the manager does not serve it refuses by itself, whatever stands in front of it.
func TestEndpointManager(t *testing.T) {
	m, ctx := endpointManager(t, store.NewMemory(), nil), context.Background()
	for _, gt := range []oauth2.GrantType{oauth2.AuthorizationCode, oauth2.PasswordCredentials, oauth2.Refreshing, oauth2.Implicit, "", "x"} {
		_, err := m.GenerateAccessToken(ctx, gt, &oauth2.TokenGenerateRequest{ClientID: "probe"})
		require.ErrorIs(t, err, oautherrors.ErrUnsupportedGrantType)
	}
	_, err := m.GenerateAccessToken(ctx, oauth2.ClientCredentials, &oauth2.TokenGenerateRequest{ClientID: "probe", Scope: "x"})
	require.ErrorIs(t, err, oautherrors.ErrInvalidScope)
	_, err = m.GenerateAccessToken(ctx, oauth2.ClientCredentials, &oauth2.TokenGenerateRequest{ClientID: "nobody"})
	require.ErrorIs(t, err, oautherrors.ErrInvalidClient)
	_, err = m.GenerateAuthToken(ctx, oauth2.Code, &oauth2.TokenGenerateRequest{ClientID: "probe"})
	require.ErrorIs(t, err, errNotOffered)
	_, err = m.RefreshAccessToken(ctx, &oauth2.TokenGenerateRequest{ClientID: "probe"})
	require.ErrorIs(t, err, errNotOffered)
	_, err = m.LoadRefreshToken(ctx, "x")
	require.ErrorIs(t, err, errNotOffered)
	require.ErrorIs(t, m.RemoveRefreshToken(ctx, "x"), errNotOffered)

	ti, err := m.GenerateAccessToken(ctx, oauth2.ClientCredentials, &oauth2.TokenGenerateRequest{ClientID: "probe"})
	require.NoError(t, err)
	require.Empty(t, ti.GetScope()+ti.GetRefresh()+ti.GetUserID())
	// The hole: GetExtension().Set panics on client_credentials.
	ti.(oauth2.ExtendableTokenInfo).GetExtension().Set("a", "b")
	same, err := m.LoadAccessToken(ctx, ti.GetAccess())
	require.NoError(t, err)
	require.Equal(t, ti.GetAccess(), same.GetAccess())
	require.Equal(t, accessLife, same.GetAccessExpiresIn())
	require.NoError(t, m.RemoveAccessToken(ctx, "bhat_unknown"))
}

// go-oauth2 itself never sees a request whose client is not authenticated, but if it did, it would not serve it.
func TestEndpointStandardNeedsAuthentication(t *testing.T) {
	mem := store.NewMemory()
	s := newStandard(endpointManager(t, mem, nil), nil, nil)
	r := standardRequest(context.Background(), &App{ID: "probe"}, url.Values{"grant_type": {"client_credentials"}})
	rec := httptest.NewRecorder()
	require.NoError(t, s.HandleTokenRequest(rec, r.WithContext(context.Background())))
	require.Equal(t, 401, rec.Code)
	require.NotEmpty(t, rec.Header().Get("WWW-Authenticate"))
	rec = httptest.NewRecorder()
	require.NoError(t, s.HandleTokenRequest(rec, r))
	require.Equal(t, 200, rec.Code)
}

// A record that is there and not ours to read is a fault, not a "no".
func TestEndpointDamagedAccess(t *testing.T) {
	mem, ctx := store.NewMemory(), context.Background()
	m := endpointManager(t, mem, nil)
	ti, err := m.GenerateAccessToken(ctx, oauth2.ClientCredentials, &oauth2.TokenGenerateRequest{ClientID: "probe"})
	require.NoError(t, err)
	found, err := mem.Get(ctx, kindAccess, accessID(ti.GetAccess()))
	require.NoError(t, err)
	found[0].Data = []byte("{")
	_, err = mem.Apply(ctx, time.Now(), []store.Op{store.Put(found[0])})
	require.NoError(t, err)
	_, err = m.LoadAccessToken(ctx, ti.GetAccess())
	require.Error(t, err)
	require.False(t, noAccessToken(err))
	require.NotContains(t, err.Error(), ti.GetAccess())
}

// P9: what was not made with the client's secret does not reach the store, which is not even there.
func TestEndpointForgedAccess(t *testing.T) {
	m := endpointManager(t, nil, nil)
	real, _ := m.clients.fixed.accessToken("probe")
	require.True(t, m.clients.fixed.madeAccess(real))
	forged := []string{"", accessPrefix, accessPrefix + strings.Repeat("A", 43), accessPrefix + strings.Repeat("A", 300), real + "\n", real + "=",
		strings.TrimPrefix(real, accessPrefix), accessPrefix + "!" + real[len(accessPrefix)+1:]}
	for i := len(accessPrefix); i < len(real); i++ {
		b := []byte(real)
		if b[i]++; b[i] > 'z' {
			b[i] = 'A'
		}
		forged = append(forged, string(b))
	}
	for _, token := range forged {
		_, err := m.LoadAccessToken(context.Background(), token)
		require.True(t, noAccessToken(err), token)
	}
}

func TestEndpointPurgeAccess(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	mem, ctx := store.NewMemory(), context.Background()
	m := endpointManager(t, mem, func() time.Time { return now })
	mint := func() string {
		ti, err := m.GenerateAccessToken(ctx, oauth2.ClientCredentials, &oauth2.TokenGenerateRequest{ClientID: "probe"})
		require.NoError(t, err)
		return ti.GetAccess()
	}
	for range 1100 {
		mint()
	}
	now = now.Add(accessLife + time.Second)
	alive := mint()
	engine, err := grant.NewEngine(grant.Config{Store: mem, Key: grant.NewSecret(strings.Repeat("k", 32)), Permit: func(context.Context, grant.Access) error { return nil }})
	require.NoError(t, err)
	require.NoError(t, (&purger{engine: engine, store: mem, now: func() time.Time { return now }}).run(ctx))
	left, err := mem.List(ctx, store.Query{Kind: kindAccess})
	require.NoError(t, err)
	require.Len(t, left, 1)
	_, err = m.LoadAccessToken(ctx, alive)
	require.NoError(t, err)
}

// P6: only the JSON of a handover has the code.
func TestEndpointHandoverRedacts(t *testing.T) {
	h := handover{ID: "g1", Code: "bhsc_secret"}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "h", h)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "h", h, "list", []handover{h}, "pointer", &h)
	require.Contains(t, log.String(), "grant g1")
	require.NotContains(t, log.String(), "bhsc_")
	require.NotContains(t, fmt.Sprintf("%v %+v %#v %s %q %v %+v", h, h, h, h, h, []handover{h}, &h), "bhsc_")
	text, err := json.Marshal(h)
	require.NoError(t, err)
	require.Contains(t, string(text), "bhsc_secret")
}

func TestEndpointWriteError(t *testing.T) {
	rec := httptest.NewRecorder()
	writeError(rec, 403, "insufficient_scope", "a \"quoted\" \\ 文\n<text>", "error_reason", "wrong_domain")
	require.Equal(t, 403, rec.Code)
	require.JSONEq(t, `{"error":"insufficient_scope","error_description":"a 'quoted' ? ??<text>","error_reason":"wrong_domain"}`, rec.Body.String())
	require.Contains(t, rec.Body.String(), "<text>")
	rec = httptest.NewRecorder()
	rec.Header().Set("WWW-Authenticate", "Bearer")
	writeError(rec, 401, "invalid_token", "")
	require.JSONEq(t, `{"error":"invalid_token"}`, rec.Body.String())
	require.Equal(t, []string{"Bearer"}, rec.Header().Values("WWW-Authenticate"))

	// What cannot be written as JSON is no panic and nothing half-written.
	rec = httptest.NewRecorder()
	writeJSON(rec, 200, func() {})
	require.Equal(t, 500, rec.Code)
	require.JSONEq(t, `{"error":"server_error"}`, rec.Body.String())

	// A grant that cannot be served is a fault of the configuration: 500, and no invitation to try again.
	rec = httptest.NewRecorder()
	var log bytes.Buffer
	writeFault(context.Background(), rec, slog.New(slog.NewTextHandler(&log, nil)), "token", fmt.Errorf("deep: %w: %w", grant.ErrInvalid, io.EOF))
	require.Equal(t, 500, rec.Code)
	require.Empty(t, rec.Header().Get("Retry-After"))
	require.NotContains(t, rec.Body.String(), "deep")
	require.Contains(t, log.String(), "deep")
}
