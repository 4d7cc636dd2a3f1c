package authz

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSameURL(t *testing.T) {
	for text, want := range map[string]string{ // RFC 3986 §6.2.2, §6.2.3
		"https://a.example":                   "https://a.example/",
		"https://a.example/":                  "https://a.example/",
		"HTTPS://A.Example:443/x":             "https://a.example/x",
		"http://a.example:80/x?q#f":           "http://a.example/x",
		"https://a.example:8443/":             "https://a.example:8443/",
		"https://[::1]:443/x":                 "https://[::1]/x",
		"https://a.example/%7euser/%2f%c3%a9": "https://a.example/~user/%2F%C3%A9",
		"https://a.example/a/./b/../c":        "https://a.example/a/c",
		"https://a.example/a/..":              "https://a.example/",
		"https://a.example/../../x":           "https://a.example/x",
		"https://a.example/a//b/":             "https://a.example/a//b/",
		"https://a.example/%2e%2e/x":          "https://a.example/x",
		"https://a.example?x":                 "https://a.example/",
		"https://u@a.example/":                "",
		"ftp://a.example/":                    "",
		"/x":                                  "",
		"https:///x":                          "",
		"https://a.example/%zz":               "",
		"https:a.example":                     "",
		"":                                    "",
	} {
		got, ok := sameURL(text)
		require.Equal(t, want, got, text)
		require.Equal(t, want != "", ok, text)
	}
}

func FuzzSameURL(f *testing.F) {
	for _, seed := range []string{"https://a.example/a/./b", "HTTP://[::1]:80/%7e?x#y", "https://a.example/%2e%2e/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		one, ok := sameURL(text)
		if !ok {
			return
		}
		two, ok := sameURL(one)
		require.True(t, ok, one)
		require.Equal(t, one, two, "one form")
	})
}
