// Package wycheproof runs Project Wycheproof's vectors for JWS against internal/jose. They come as the module
// github.com/c2sp/wycheproof (Apache-2.0), which is why this is a module of its own: 107 MB that nobody else needs.
package wycheproof

import (
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/jose"
)

type file struct {
	NumberOfTests int
	TestGroups    []struct {
		Comment string
		Public  json.RawMessage
		Private json.RawMessage
		Tests   []struct {
			TcID    int
			Comment string
			JWS     string
			Result  string
			Flags   []string
		}
	}
}

// exception says why valid ones are refused all the same, by the algorithm of their key.
func exception(alg string) string {
	switch alg {
	case "HS256":
		return "a shared secret is no key here"
	case "RS384", "RS512", "PS256", "PS384", "PS512", "ES521":
		return "an algorithm that this package does not know"
	}
	return ""
}

// No modified signature, no "none", no key of another type or for another purpose: what is not valid is never accepted.
// What is valid and of an algorithm that is allowed is accepted.
func TestJSONWebSignature(t *testing.T) {
	text, err := fs.ReadFile(wycheproof.TestVectors, "json_web_signature_test.json")
	require.NoError(t, err)
	var vectors file
	require.NoError(t, json.Unmarshal(text, &vectors))
	rules := &jose.Rules{Types: []string{"", "JWT"}}
	ran, accepted, refused, excepted := 0, 0, 0, map[string]int{}
	for _, g := range vectors.TestGroups {
		key := g.Public
		if key == nil {
			key = g.Private
		}
		var says struct{ Alg string }
		require.NoError(t, json.Unmarshal(key, &says))
		k, keyErr := jose.ParseKey(key)
		for _, test := range g.Tests {
			ran++
			err := keyErr
			if err == nil {
				var j *jose.JWS
				if j, err = rules.Parse(test.JWS); err == nil {
					_, err = j.Verify(jose.Set{k})
				}
			}
			reason := exception(says.Alg)
			switch {
			case test.Result != "valid":
				require.Error(t, err, "%d %s: %s is accepted", test.TcID, g.Comment, test.Comment)
				refused++
			case reason != "":
				require.Error(t, err, "%d %s: %s is accepted", test.TcID, g.Comment, test.Comment)
				excepted[says.Alg+": "+reason]++
			default:
				require.NoError(t, err, "%d %s: %s", test.TcID, g.Comment, test.Comment)
				accepted++
			}
			if err != nil {
				require.ErrorIs(t, err, jose.ErrInvalid)
			}
		}
	}
	require.Equal(t, vectors.NumberOfTests, ran)
	require.Equal(t, []int{10, 355}, []int{accepted, refused})
	t.Logf("%d accepted, %d refused, excepted: %v", accepted, refused, excepted)
}
