package authz

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/server"

	"github.com/behest-go/behest/grant"
)

type authenticatedKey struct{}

// newStandard makes go-oauth2's server. It is given requests by standardRequest, and so sees nothing that was not
// checked: no parameter of the query, none twice, and a client that has been authenticated. What it answers goes
// through the hooks below, which put its statuses right. It has no part in
//
//   - the page of consent, and where errors lead: it redirects those of a request whose redirect_uri nobody has
//     looked at, says neither iss nor why, and writes the query of the redirect URI anew;
//   - the operation grant: it knows no grant types but its own.
func newStandard(m *manager, engine *grant.Engine, log *slog.Logger) *server.Server {
	s := server.NewServer(&server.Config{
		TokenType:                   "Bearer",
		AllowedResponseTypes:        []oauth2.ResponseType{oauth2.Code},
		AllowedGrantTypes:           []oauth2.GrantType{oauth2.ClientCredentials},
		AllowedCodeChallengeMethods: []oauth2.CodeChallengeMethod{oauth2.CodeChallengeS256},
		ForcePKCE:                   true,
	}, m)
	if m.signIns != nil {
		s.Config.AllowedGrantTypes = append(s.Config.AllowedGrantTypes, oauth2.AuthorizationCode, oauth2.Refreshing)
	}
	s.ClientInfoHandler = func(r *http.Request) (string, string, error) {
		id, ok := r.Context().Value(authenticatedKey{}).(string)
		if !ok {
			return "", "", oautherrors.ErrInvalidClient
		}
		return id, "", nil
	}
	s.ClientScopeHandler = func(tgr *oauth2.TokenGenerateRequest) (bool, error) {
		if tgr.UserID == "" && tgr.Scope != "" {
			return false, errClientScope
		}
		_, known := signInScope(tgr.Scope)
		return known, nil
	}
	s.ExtensionFieldsHandler = func(ti oauth2.TokenInfo) map[string]any {
		account := ti.GetUserID()
		if account == "" {
			return nil
		}
		more := map[string]any{"sub": engine.Name(ti.GetClientID(), account)}
		if ti.GetScope() == scopeProfile {
			more["username"] = account
		}
		return more
	}
	s.InternalErrorHandler = func(err error) *oautherrors.Response {
		var f *fault
		if errors.As(err, &f) {
			return &oautherrors.Response{Error: errors.New(f.code), Description: f.description, StatusCode: f.status}
		}
		if log != nil && !errors.Is(err, context.Canceled) {
			log.Error("request failed", "endpoint", "token", "err", err)
		}
		return oautherrors.NewResponse(oautherrors.ErrTemporarilyUnavailable, http.StatusServiceUnavailable)
	}
	s.ResponseErrorHandler = func(re *oautherrors.Response) {
		if _, its := oautherrors.Descriptions[re.Error]; !its {
			return
		}
		re.StatusCode, re.Description = http.StatusBadRequest, "the request was refused" // RFC 6749 §5.2; it has others for some
		switch re.Error {
		case oautherrors.ErrInvalidClient:
			re.StatusCode, re.Description = errClient.status, errClient.description
		case oautherrors.ErrTemporarilyUnavailable, oautherrors.ErrServerError:
			re.Error = oautherrors.ErrTemporarilyUnavailable
			re.StatusCode, re.Description = http.StatusServiceUnavailable, "the server cannot decide now; try again"
		}
	}
	s.ResponseTokenHandler = func(w http.ResponseWriter, data map[string]any, _ http.Header, status ...int) error {
		code, failed := data["error"].(string)
		if !failed {
			writeJSON(w, http.StatusOK, data)
			return nil
		}
		description, _ := data["error_description"].(string)
		writeError(w, status[0], code, description)
		return nil
	}
	return s
}

var errClientScope = &fault{status: http.StatusBadRequest, code: "invalid_scope", description: "client_credentials has no scope: only a user's operation gives one"}

// standardParameters are all that go-oauth2 is shown of a request.
var standardParameters = [...]string{"grant_type", "scope", "code", "redirect_uri", "code_verifier", "refresh_token",
	"response_type", "client_id", "state", "code_challenge", "code_challenge_method"}

// standardRequest is all that go-oauth2 sees of a request, which it takes apart again.
func standardRequest(ctx context.Context, app *App, form url.Values) *http.Request {
	checked := url.Values{}
	for _, name := range standardParameters {
		if value := form.Get(name); value != "" {
			checked.Set(name, value)
		}
	}
	r := &http.Request{Method: http.MethodPost, URL: &url.URL{}, Header: http.Header{}, Body: http.NoBody, Form: checked, PostForm: checked}
	return r.WithContext(context.WithValue(ctx, authenticatedKey{}, app.ID))
}
