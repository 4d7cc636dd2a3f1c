package authz_test

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// Through the user's client the app gets a code and nothing else; why, it learns when it redeems the code. What was pushed or polled has said so already.
func TestRedirectTellsTheEventAtRedemption(t *testing.T) {
	s := authztest.New(t, authz.Config{
		Apps: []authz.App{{ID: "teatime", Actions: []string{"message.write"}, RedirectURIs: []string{"https://teatime.example/in"}}},
		Triggers: []grant.Trigger{
			{App: "teatime", On: grant.LinkOpen, In: "group:*", Allow: []string{"message.write"}},
			{App: "teatime", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}},
		},
	})
	event := grant.Event{ID: "click-1", Operation: grant.LinkOpen, Account: "zhang-san", Domain: scope.MustDomain("group:42"),
		App: "teatime", Target: "https://teatime.example/tea/16"}
	link, err := url.Parse(s.MustEmit(event)[0].Link())
	require.NoError(t, err)
	token, err := s.Client("teatime").Redeem(t.Context(), app.NewSecret(link.Query().Get("code")))
	require.NoError(t, err)
	require.Equal(t, "https://teatime.example/tea/16", token.Event.Target)
	require.Equal(t, "link.open", token.Event.Operation)
	require.Equal(t, token.Account, token.Event.Account)
	require.NotContains(t, token.Event.Account, "zhang")

	event.ID, event.Operation = "m1", grant.Mention
	token, err = s.Client("teatime").Redeem(t.Context(), app.NewSecret(s.MustEmit(event)[0].Code.Reveal()))
	require.NoError(t, err)
	require.Empty(t, token.Event)
}
