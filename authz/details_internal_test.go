package authz

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/scope"
)

// RFC 9396 §5: what is unknown, twice, or not of its form is refused.
func TestDetails(t *testing.T) {
	const issuer = "https://social.example"
	d, err := parseDetails(` [ {"type": "social_operation", "locations": ["https://social.example"], "domain": "group:42", "actions": ["b.c", "a"], "uses": 3} ] `, issuer)
	require.NoError(t, err)
	require.Equal(t, detail{Type: detailType, Locations: []string{issuer}, Domain: scope.MustDomain("group:42"), Actions: []string{"a", "b.c"}, Uses: 3}, d)
	d, err = parseDetails(`[{"type":"social_operation"}]`, issuer)
	require.NoError(t, err)
	require.Equal(t, detail{Type: detailType}, d)
	for _, text := range []string{
		``, `null`, `{}`, `[]`, `[null]`, `[1]`, `["social_operation"]`, `[[]]`, `[{}]`, `{"type":"social_operation"}`,
		`[{"type":"social_operation"},{"type":"social_operation"}]`, `[{"type":"social_operation"}] x`, `[{"type":"social_operation"}][]`, `[{"type":"social_operation"}`,
		`[{"type":"payment_initiation"}]`, `[{"type":"Social_operation"}]`, `[{"type":""}]`, `[{"type":null}]`, `[{"type":["social_operation"]}]`,
		`[{"Type":"social_operation"}]`, `[{"type":"social_operation","Domain":"group:42"}]`, `[{"type":"social_operation","privileges":["x"]}]`,
		`[{"type":"social_operation","type":"social_operation"}]`, `[{"type":"social_operation","uses":1,"uses":2}]`, `[{"type":"social_operation","uses":1,"\u0075ses":2}]`,
		`[{"type":"social_operation","locations":[]}]`, `[{"type":"social_operation","locations":["https://social.example/"]}]`,
		`[{"type":"social_operation","locations":["https://social.example","https://another.example"]}]`, `[{"type":"social_operation","locations":"https://social.example"}]`,
		`[{"type":"social_operation","domain":""}]`, `[{"type":"social_operation","domain":"group"}]`, `[{"type":"social_operation","domain":null}]`, `[{"type":"social_operation","domain":"group:42/message.write"}]`,
		`[{"type":"social_operation","actions":[]}]`, `[{"type":"social_operation","actions":[null]}]`, `[{"type":"social_operation","actions":["a","a"]}]`, `[{"type":"social_operation","actions":["a b"]}]`,
		`[{"type":"social_operation","actions":[["a"]]}]`, `[{"type":"social_operation","actions":{"a":1}}]`, `[{"type":"social_operation","actions":[""]}]`,
		`[{"type":"social_operation","uses":0}]`, `[{"type":"social_operation","uses":-1}]`, `[{"type":"social_operation","uses":1.5}]`, `[{"type":"social_operation","uses":1e2}]`,
		`[{"type":"social_operation","uses":"1"}]`, `[{"type":"social_operation","uses":null}]`, `[{"type":"social_operation","uses":99999999999999999999}]`, `[{"type":"social_operation","uses":01}]`,
		strings.Repeat(`[`, 10000), strings.Repeat(`[{"a":`, 10000),
	} {
		d, err := parseDetails(text, issuer)
		require.ErrorIs(t, err, ErrInvalidRequest, text)
		var f *fault
		require.True(t, errors.As(err, &f) && f.code == "invalid_authorization_details" && f.status == 400, text)
		require.Zero(t, d, text)
	}
}

// What is taken says in its own words what it was, and no more than encoding/json finds in it.
func FuzzAuthorizationDetails(f *testing.F) {
	f.Add(`[{"type":"social_operation","locations":["https://a.example"],"domain":"group:42/thread:7","actions":["message.write","member.read"],"uses":3}]`)
	f.Add(`[{"type":"social_operation","uses":1,"uses":2}]`)
	f.Add(`[{"type":"social_operation","domain":"group:4%2F2"}]`)
	f.Add(`[{"type":"social_operation","actions":["\u0061"]}]`)
	f.Add(`[[[{`)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDetails(text, "https://a.example")
		if err != nil {
			require.ErrorIs(t, err, ErrInvalidRequest)
			require.Zero(t, d)
			return
		}
		var loose []map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &loose))
		require.Len(t, loose, 1)
		for name := range loose[0] {
			require.Contains(t, []string{"type", "locations", "domain", "actions", "uses"}, name)
		}
		again, err := json.Marshal([]detail{d})
		require.NoError(t, err)
		back, err := parseDetails(string(again), "https://a.example")
		require.NoError(t, err)
		require.Equal(t, d, back)
	})
}
