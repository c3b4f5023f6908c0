//! What the writer writes, the reader reads.

mod common;

use std::path::Path;

use common::{bare, every_value, file_bytes, fill, small_model};
use hypura_gguf::{
    ByteRange, GgmlType, Metadata, Model, OpenError, Role, SplitName, WriteError, Writer,
    read_header, split_path, virtual_header, write_split,
};

#[test]
fn every_value_type() {
    let metadata = every_value();
    let writer = Writer::new(metadata.clone(), 32).expect("32 is an alignment");
    let bytes = file_bytes(&writer);
    let header = read_header(bytes.as_slice(), bytes.len() as u64).expect("it was just written");
    assert_eq!(header.metadata, metadata);
    assert_eq!(header.version, 3);
    assert_eq!(header.alignment, 32);
    assert!(header.tensors.is_empty());
    let tokens = header.metadata.array("array.string").and_then(|array| array.as_strings());
    let tokens: Vec<_> = tokens.expect("strings").iter().collect();
    assert_eq!(tokens, [&b"a"[..], b"", b"third"]);
}

#[test]
fn every_tensor_type_and_number_of_dimensions() {
    let mut writer = Writer::new(Metadata::new(), 64).expect("64 is an alignment");
    for &ty in GgmlType::ALL {
        let row = ty.block_elements() * 2;
        for dims in [&[row][..], &[row, 3], &[row, 3, 2], &[row, 1, 1, 2]] {
            let name = format!("{ty}.{}", dims.len());
            writer.add_tensor(&name, ty, dims).expect(&name);
        }
    }
    writer.add_tensor("scalar", GgmlType::F32, &[]).expect("no dimensions are one element");
    writer.add_tensor("nothing", GgmlType::F32, &[0, 7]).expect("no elements are no bytes");
    let bytes = file_bytes(&writer);
    assert_eq!(bytes.len() as u64, writer.header_bytes() + writer.data_bytes());
    let header = read_header(bytes.as_slice(), bytes.len() as u64).expect("it was just written");
    assert_eq!(header.tensors, writer.tensors());
    assert_eq!(header.alignment, 64);
    assert_eq!(header.data_offset, writer.header_bytes());
    assert_eq!(header.metadata.u32("general.alignment"), Some(64));
}

#[test]
fn version_2_reads_the_same() {
    let mut bytes = file_bytes(&small_model(bare(), 32));
    let version_3 = read_header(bytes.as_slice(), bytes.len() as u64).expect("version 3");
    bytes[4] = 2;
    let version_2 = read_header(bytes.as_slice(), bytes.len() as u64).expect("version 2");
    assert_eq!(version_2.version, 2);
    assert_eq!(version_2.tensors, version_3.tensors);
}

#[test]
fn the_writer_checks_what_it_is_given() {
    let mut writer = Writer::new(bare(), 32).expect("32 is an alignment");
    writer.add_tensor("a", GgmlType::F32, &[4]).expect("a new name");
    let long = "x".repeat(64);
    let errors = [
        writer.add_tensor("a", GgmlType::F32, &[4]).unwrap_err(),
        writer.add_tensor(&long, GgmlType::F32, &[4]).unwrap_err(),
        writer.add_tensor("b", GgmlType::Q4_0, &[31]).unwrap_err(),
        writer.add_tensor("c", GgmlType::F32, &[1; 5]).unwrap_err(),
        writer.add_tensor("d", GgmlType::F32, &[u64::MAX, 2]).unwrap_err(),
    ];
    assert!(matches!(errors[0], WriteError::DuplicateTensor { .. }));
    assert!(matches!(errors[1], WriteError::TensorName { .. }));
    for error in &errors[2..] {
        assert!(matches!(error, WriteError::Shape { .. }), "{error}");
    }
    for alignment in [0, 3, 1 << 30] {
        let error = Writer::new(bare(), alignment).unwrap_err();
        assert!(matches!(error, WriteError::Alignment { .. }), "{error}");
    }
    let unnamed: Metadata = [("", 1_u32)].into_iter().collect();
    assert!(matches!(Writer::new(unnamed, 32), Err(WriteError::Key { bytes: 0 })));
}

#[test]
fn tensors_get_exactly_their_bytes() {
    let mut writer = Writer::new(bare(), 32).expect("32 is an alignment");
    writer.add_tensor("a", GgmlType::F32, &[4]).expect("a new name");
    for (given, counted) in [(&[0_u8; 15][..], 15), (&[0; 17], 17), (&[], 0)] {
        match writer.write(&mut Vec::new(), |_, sink| sink.write_all(given)) {
            Err(WriteError::WrongLength { expected: 16, written, .. }) => {
                assert_eq!(written, counted);
            }
            other => panic!("{} bytes for 16: {other:?}", given.len()),
        }
    }
    // Even when the source ignores the refusal.
    let ignoring = writer.write(&mut Vec::new(), |_, sink| {
        let _ = sink.write_all(&[0; 16]);
        let _ = sink.write_all(&[0; 1]);
        Ok(())
    });
    assert!(matches!(ignoring, Err(WriteError::WrongLength { written: 17, .. })), "{ignoring:?}");
    // A source's own failure is passed on, not called a wrong length.
    let failing =
        writer.write(&mut Vec::new(), |_, _| Err(std::io::Error::other("the disk is on fire")));
    let message = failing.unwrap_err().to_string();
    assert!(message.contains("the disk is on fire"), "{message}");
}

#[test]
fn a_model_knows_where_its_bytes_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    let writer = small_model(bare(), 128);
    let bytes = file_bytes(&writer);
    std::fs::write(&path, &bytes).expect("a small file");

    let model = Model::open(&path).expect("it was just written");
    assert_eq!(model.architecture(), "test");
    assert_eq!(model.files.len(), 1);
    assert_eq!(model.file_bytes(), bytes.len() as u64);
    for (index, tensor) in model.tensors.iter().enumerate() {
        let value = u8::try_from(index).expect("few") + 1;
        assert!(slice(&bytes, tensor.range()).iter().all(|&byte| byte == value), "{}", tensor.name);
        assert_eq!(tensor.offset % 128, 0);
        assert_eq!(model.tensor(&tensor.name), Some(tensor));
    }
    assert_eq!(model.weight_bytes(), model.tensors.iter().map(|t| t.bytes).sum::<u64>());

    let experts = model.tensor("blk.1.ffn_up_exps.weight").expect("it was added");
    assert_eq!((experts.n_experts(), experts.expert_bytes()), (Some(4), Some(3 * 144)));
    assert_eq!(experts.layer, Some(1));
    let ranges: Vec<_> = (0..4).filter_map(|expert| experts.expert_range(expert)).collect();
    assert_eq!(ranges.first().map(|range| range.offset), Some(experts.offset));
    assert!(ranges.windows(2).all(|pair| pair[0].offset + pair[0].len == pair[1].offset));
    assert_eq!(ranges.iter().map(|range| range.len).sum::<u64>(), experts.bytes);
    assert_eq!(experts.expert_range(4), None);
    let dense = model.tensor("blk.0.ffn_up.weight").expect("it was added");
    assert_eq!(
        (dense.role, dense.n_experts(), dense.expert_range(0)),
        (Role::DenseFfn, None, None)
    );

    let planned = Model::from_writer(&writer, &path);
    assert_eq!((planned.files, planned.tensors), (model.files, model.tensors));
    assert_eq!(planned.metadata, model.metadata);
}

#[test]
fn split_files_are_one_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut metadata = every_value();
    metadata.insert("general.alignment", 64_u32);
    let writer = small_model(metadata, 64);
    for plan in [&[2, 2, 1][..], &[0, 5], &[5]] {
        let prefix = folder.path().join(format!("model-{}", plan.len()));
        let paths = write_split(&writer, &prefix, plan, fill(&writer)).expect("a valid plan");
        assert_eq!(paths.len(), plan.len());
        let model = Model::open(&paths[0]).expect("it was just written");
        assert_eq!(model.metadata, *writer.metadata());
        assert_eq!(model.files.len(), plan.len());
        let names: Vec<_> = model.tensors.iter().map(|tensor| &tensor.name).collect();
        let expected: Vec<_> = writer.tensors().iter().map(|info| &info.name).collect();
        assert_eq!(names, expected);
        for (index, tensor) in model.tensors.iter().enumerate() {
            let bytes = std::fs::read(&model.files[tensor.file].path).expect("a small file");
            let value = u8::try_from(index).expect("few") + 1;
            assert!(slice(&bytes, tensor.range()).iter().all(|&byte| byte == value));
        }
    }
    let wrong = write_split(&writer, Path::new("unused"), &[2, 2], fill(&writer));
    assert!(matches!(wrong, Err(WriteError::SplitPlan { tensors: 5 })), "{wrong:?}");
}

#[test]
fn faults_of_a_split_set_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let writer = small_model(bare(), 32);
    let prefix = folder.path().join("m");
    let write = || write_split(&writer, &prefix, &[2, 2, 1], fill(&writer)).expect("a valid plan");

    let paths = write();
    match Model::open(&paths[1]) {
        Err(OpenError::NotFirstSplit { part: 2, first, .. }) => assert_eq!(first, paths[0]),
        other => panic!("{other:?}"),
    }

    std::fs::remove_file(&paths[2]).expect("it exists");
    match Model::open(&paths[0]) {
        Err(OpenError::MissingSplit { path, part: 3, count: 3 }) => assert_eq!(path, paths[2]),
        other => panic!("{other:?}"),
    }

    std::fs::copy(&paths[1], &paths[2]).expect("it exists");
    match Model::open(&paths[0]) {
        Err(OpenError::WrongSplit { path, part: 3, count: 3 }) => assert_eq!(path, paths[2]),
        other => panic!("{other:?}"),
    }

    // Another model's last part has the right number but not the right tensors.
    let mut other = Writer::new(bare(), 32).expect("32 is an alignment");
    for name in ["x", "y", "token_embd.weight", "z"] {
        other.add_tensor(name, GgmlType::F32, &[1]).expect("a new name");
    }
    let other_prefix = folder.path().join("other");
    let others = write_split(&other, &other_prefix, &[1, 1, 2], fill(&other)).expect("valid");
    std::fs::copy(&others[2], &paths[2]).expect("it exists");
    match Model::open(&paths[0]) {
        Err(OpenError::SplitTensorCount { expected: 5, found: 6 }) => {}
        other => panic!("{other:?}"),
    }
    let others = write_split(&other, &other_prefix, &[1, 2, 1], fill(&other)).expect("valid");
    write();
    std::fs::copy(&others[1], &paths[1]).expect("it exists");
    match Model::open(&paths[0]) {
        Err(OpenError::DuplicateTensor { name }) => assert_eq!(name, "token_embd.weight"),
        other => panic!("{other:?}"),
    }

    let renamed = folder.path().join("renamed.gguf");
    write();
    std::fs::rename(&paths[0], &renamed).expect("it exists");
    match Model::open(&renamed) {
        Err(OpenError::SplitName { expected, .. }) => assert_eq!(expected, "-00001-of-00003.gguf"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn split_names_are_those_of_llama_cpp() {
    let path = split_path(Path::new("dir/m"), 1, 3);
    assert_eq!(path, Path::new("dir/m-00002-of-00003.gguf"));
    let name = SplitName::parse(&path).expect("a split name");
    assert_eq!((name.prefix.as_path(), name.no, name.count), (Path::new("dir/m"), 1, 3));
    assert_eq!(name.path_of(0), Path::new("dir/m-00001-of-00003.gguf"));
    for no_split in [
        "m.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-2-of-3.gguf",
        "m-00002-of-00003.bin",
        "-00002-of-00003.gguf",
        "m-00002-of-99999999999.gguf",
    ] {
        assert_eq!(SplitName::parse(Path::new(no_split)), None, "{no_split}");
    }
}

#[test]
fn a_virtual_header_joins_the_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let writer = small_model(every_value(), 32);
    let prefix = folder.path().join("m");
    let paths = write_split(&writer, &prefix, &[1, 3, 1], fill(&writer)).expect("a valid plan");
    let mut model = Model::open(&paths[0]).expect("it was just written");
    let n_entries = model.metadata.len();
    model.metadata.insert("split.count", 3_u16); // however it came there, it must not get out

    let keep = |key: &str| key != "array.u32";
    let built = virtual_header(&model, 65536, keep).expect("65536 is an alignment");
    assert_eq!(built.bytes.len() % 65536, 0);
    let header = read_header(built.bytes.as_slice(), built.file_len).expect("it was just built");
    assert_eq!(header.data_offset, built.bytes.len() as u64);
    assert_eq!(header.alignment, 65536);
    assert_eq!(header.metadata.get("array.u32"), None);
    assert_eq!(header.metadata.len(), n_entries); // one key less, the alignment more
    assert!(header.metadata.iter().all(|(key, _)| !key.starts_with("split.")));
    let mut expected_offset = 0;
    for ((info, offset), tensor) in header.tensors.iter().zip(&built.offsets).zip(&model.tensors) {
        assert_eq!((&info.name, info.ty, info.dims), (&tensor.name, tensor.ty, tensor.dims));
        // llama.cpp demands that each tensor starts where the padding of the one before ends.
        assert_eq!((info.offset, *offset), (expected_offset, expected_offset));
        expected_offset += tensor.bytes.next_multiple_of(65536);
    }
    assert_eq!(built.offsets.len(), model.tensors.len());
    assert_eq!(built.file_len, built.bytes.len() as u64 + expected_offset);
    assert!(virtual_header(&model, 48, |_| true).is_err());
}

#[test]
fn the_demo_model_reads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo-draft-3m-q8_0.gguf");
    let model = Model::open(&path).expect("the model that comes with the repository");
    assert_eq!(model.architecture(), "qwen3");
    assert!(model.tensors.iter().all(|tensor| tensor.role != Role::Other));
    let hparams = model.hparams();
    let rows = model.tensor("token_embd.weight").expect("every model has one").dims[1];
    assert_eq!(hparams.n_vocab.map(u64::from), Some(rows));
    let layers = model.tensors.iter().filter_map(|tensor| tensor.layer).max();
    assert_eq!(Some(hparams.n_layer - 1), layers);
    let key = model.tensor("blk.0.attn_k.weight").expect("every layer has one");
    assert_eq!(hparams.key_row_elements(0), key.dims[1]);
    assert_eq!(hparams.n_expert, 0);
}

/// The demo model was written by llama.cpp's tools: writing it again must give the same file.
#[test]
fn files_are_written_as_llama_cpp_writes_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo-draft-3m-q8_0.gguf");
    let original = std::fs::read(&path).expect("the model that comes with the repository");
    let model = Model::open(&path).expect("the same");
    let mut writer = Writer::new(model.metadata.clone(), 32).expect("32 is an alignment");
    for tensor in &model.tensors {
        let n_dims = usize::try_from(tensor.n_dims).expect("at most 4");
        writer.add_tensor(&tensor.name, tensor.ty, &tensor.dims[..n_dims]).expect(&tensor.name);
    }
    let mut written = Vec::new();
    writer
        .write(&mut written, |index, sink| {
            sink.write_all(slice(&original, model.tensors[index].range()))
        })
        .expect("writing to memory");
    assert!(written == original, "the files differ");
}

fn slice(bytes: &[u8], range: ByteRange) -> &[u8] {
    let start = usize::try_from(range.offset).expect("small");
    &bytes[start..start + usize::try_from(range.len).expect("small")]
}
