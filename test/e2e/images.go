package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Names and tags as the kubelet of the pinned version and its test suite expect them.
const (
	PauseImage   = "registry.k8s.io/pause:3.10.2"
	AgnhostImage = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
)

// writeImages writes the archives that every node imports.
func (c *Cluster) writeImages() error {
	images := []struct {
		name, program string
		arguments     []string
	}{
		{PauseImage, "pause", nil},
		{AgnhostImage, "agnhost", []string{"pause"}},
	}
	for _, image := range images {
		archive := filepath.Join(c.dir, image.program+".tar")
		if err := writeImage(archive, image.name, filepath.Join(c.bin, image.program), image.arguments); err != nil {
			return fmt.Errorf("making the image %s: %w", image.name, err)
		}
		c.images = append(c.images, archive)
	}
	return nil
}

// writeImage writes an image of one static program, its entry point, as an archive in the OCI image layout
// (image-spec, image-layout.md).
func writeImage(path, name, program string, arguments []string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := packLayer(filepath.Base(program), content)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	archive := tar.NewWriter(file)
	add := func(name string, content []byte) {
		if err == nil {
			err = addFile(archive, name, content, 0o644)
		}
	}
	// blob stores content under its digest and describes it as an OCI descriptor.
	blob := func(mediaType string, content []byte) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		add("blobs/sha256/"+digest, content)
		return map[string]any{"mediaType": "application/vnd.oci.image." + mediaType, "digest": "sha256:" + digest, "size": len(content)}
	}
	layerDescriptor := blob("layer.v1.tar", layer)
	config := blob("config.v1+json", encodeJSON(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/" + filepath.Base(program)}, "Cmd": arguments},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layerDescriptor["digest"]}},
	}))
	manifest := blob("manifest.v1+json", encodeJSON(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []any{layerDescriptor},
	}))
	manifest["annotations"] = map[string]string{"io.containerd.image.name": name}
	add("index.json", encodeJSON(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}}))
	add("oci-layout", encodeJSON(map[string]string{"imageLayoutVersion": "1.0.0"}))
	if err != nil {
		return err
	}
	return archive.Close()
}

// packLayer packs the program and an empty /tmp as a file system layer.
func packLayer(name string, content []byte) ([]byte, error) {
	var buffer bytes.Buffer
	layer := tar.NewWriter(&buffer)
	if err := layer.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		return nil, err
	}
	if err := addFile(layer, name, content, 0o755); err != nil {
		return nil, err
	}
	err := layer.Close()
	return buffer.Bytes(), err
}

func addFile(archive *tar.Writer, name string, content []byte, mode int64) error {
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

// encodeJSON encodes maps of strings and numbers, which cannot fail.
func encodeJSON(value any) []byte {
	encoded, _ := json.Marshal(value)
	return encoded
}
