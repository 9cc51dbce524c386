package model

// ConfigMapKey names a ConfigMap.
type ConfigMapKey struct{ Namespace, Name string }

// ConfigMap is one of the few that weft reads, each by its name.
type ConfigMap struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Data      map[string]string `json:"data,omitempty"`
}

// Key returns the ConfigMap's namespace and name.
func (c *ConfigMap) Key() ConfigMapKey { return ConfigMapKey{c.Namespace, c.Name} }
